"""The subcommand ``reproduce``."""

from collections.abc import Sequence

import click

from simulations.cli import completion
from simulations.cli.commands import HYDRA


@click.command(name="reproduce", context_settings=HYDRA)
@click.argument("experiment", shell_complete=completion.experiments)
@click.option("--plan", is_flag=True, help="Show which runs are finished, interrupted and missing; exit code 3 where some are missing.")
@click.option("--table-only", is_flag=True, help="Print the table of the finished runs; nothing is run and no data are needed.")
@click.option("--seeds", metavar="A,B,...", help="Seeds. Default: the experiment's.")
@click.option("--settings", metavar="A,B,...", help="Settings by name, rows of the table. Default: all.")
@click.option("--strategies", metavar="A,B,...", help="Strategies by name. Default: all.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at a time, each in its own process. Default: one per core.")
@click.option("--quiet", is_flag=True, help="Plain lines instead of moving bars, as for a log file.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...", shell_complete=completion.run_words)
def reproduce_command(
    experiment: str,
    plan: bool,
    table_only: bool,
    seeds: str | None,
    settings: str | None,
    strategies: str | None,
    jobs: int | None,
    quiet: bool,
    words: Sequence[str],
) -> int:
    """Run what is missing of an experiment, and print its table beside the published one.

    The table goes to OUTPUT/NAME/reproduce/EXPERIMENT/ as table.md, table.csv and table.tex. The same command continues an interrupted
    reproduction. 'fedkd describe experiment' lists the experiments.

    \b
    Example, without any data or run:
      fedkd reproduce fedgen_table1_mnist --plan --seeds 0
    """
    from simulations.cli.words import check_words
    from simulations.experiments.reproduce import plan_reproduction, reproduce

    if plan and table_only:
        raise click.UsageError("--plan must be given without --table-only")
    name = experiment.removeprefix("experiment=")
    check_words(words, [option for one in reproduce_command.params for option in one.opts])
    return reproduce(
        plan_reproduction(
            name,
            words,
            seeds=None if seeds is None else numbers(seeds),
            settings=None if settings is None else settings.split(","),
            strategies=None if strategies is None else strategies.split(","),
            jobs=jobs,
            quiet=quiet,
            only="plan" if plan else "table" if table_only else None,
        )
    )


def numbers(text: str) -> list[int]:
    """``0,1,2`` as whole numbers."""
    if not all(one.strip().isdigit() for one in text.split(",")):
        raise click.BadParameter(f"must be whole numbers with commas between, got {text!r}", param_hint="--seeds")
    return [int(one) for one in text.split(",")]
