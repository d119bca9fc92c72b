"""The command ``fedkd``: its subcommands are imported when they are asked for, and what they need when they run."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from simulations.cli.exit_codes import OK, one_line_errors
from simulations.cli.usage import run_command
from simulations.overrides import nearest

COMMANDS = {
    "run": ("commands", "one federated run, or with -m several one after the other"),
    "sweep": ("commands", "all combinations of values, several runs at a time"),
    "report": ("reporting", "tables and figures from run folders"),
    "list": ("inspection", "runs with their state, accuracy and age; removes run folders"),
    "describe": ("inspection", "groups, options and parameters that can be chosen"),
    "tune": ("commands", "search for a hyperparameter on held-out training data"),
    "distill": ("commands", "train a student from a run's model or from a teacher"),
    "export": ("commands", "the model of a run as safetensors and torch.export"),
    "reproduce": ("reporting", "a published table beside ours"),
    "heterogeneity": ("commands", "a page of partitions and shifts, without training"),
    "bench": ("commands", "a benchmark"),
    "new": ("inspection", "a template of your own strategy, model, partition, data set or distiller"),
    "completion": ("inspection", "the completion script of a shell"),
}
"""The module of ``simulations.cli`` that holds each subcommand, and one line on the subcommand."""

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class Command(click.Group):
    """A group whose subcommands are imported when they are used, and whose errors are one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the subcommands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"simulations.cli.{COMMANDS[cmd_name][0]}")
        return getattr(module, f"{cmd_name}_command")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of subcommands, without an import of theirs."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The subcommand that the first word names; the nearest name where there is none."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"command must be one of {', '.join(COMMANDS)}, got {args[0]!r}{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; errors become one line and an exit code."""
        with one_line_errors():
            return super().invoke(ctx)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """The process: ends with an exit code of :mod:`simulations.cli.exit_codes`."""
        extra.pop("standalone_mode", None)
        if "_FEDKD_COMPLETE" in os.environ:
            import_module("simulations.cli.completion")  # tells click how bash is completed
        sys.exit(run_command(super().main, args, prog_name or "fedkd", **extra))


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print the version and end."""
    if value and not ctx.resilient_parsing:
        import fedkd

        click.echo(f"fedkd {fedkd.__version__}")
        ctx.exit(OK)


@click.group(cls=Command, name="fedkd", context_settings=SETTINGS, no_args_is_help=False, invoke_without_command=True)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version and exit.")
@click.pass_context
def cli(ctx: click.Context) -> int:
    """Simulate federated learning with knowledge distillation.

    \b
    Example, a minute on two cores and no data to download:
      fedkd sweep strategy=fedavg,fedgen seed=0,1 rounds=20 && fedkd report outputs/digits

    'fedkd describe' lists everything that can be chosen as GROUP=OPTION, and 'fedkd COMMAND --help' explains a command.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    return OK


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the command ``fedkd``.

    Args:
        arguments: words after the command's name; None takes those of the process.
    """
    cli.main(arguments)
