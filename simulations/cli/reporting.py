"""The subcommands ``report`` and ``reproduce``. ``python -m simulations.report`` runs the first too."""

from collections.abc import Sequence
from pathlib import Path

import click

from simulations.cli import completion
from simulations.cli.exit_codes import OK, one_line_errors
from simulations.cli.usage import run_command

FOLDER = click.Path(path_type=Path)


@click.command(name="report", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument(
    "folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path(path_type=Path), shell_complete=completion.run_folders
)
@click.option("--output", type=FOLDER, metavar="FOLDER", help="Where the files go. Default: 'report' beside the runs.")
@click.option("--baseline", metavar="STRATEGY", help="The strategy (or row of the table) that others are compared with. Default: fedavg.")
@click.option("--target", type=float, metavar="ACCURACY", help="Also the rounds and bytes to this accuracy, in 0..1.")
@click.option("--until", type=int, metavar="ROUND", help="Report the runs as they were after this round.")
@click.option(
    "--interval",
    type=click.Choice(("t", "bootstrap")),
    default="t",
    show_default=True,
    help="95 % interval over seeds: Student's t or BCa bootstrap.",
)
@click.option("--figures/--no-figures", default=True, help="Draw figures, or print tables alone.")
def report_command(
    folders: tuple[Path, ...],
    output: Path | None,
    baseline: str | None,
    target: float | None,
    until: int | None,
    interval: str,
    figures: bool,
) -> int:
    """Write tables and figures of runs: CSV, Markdown, LaTeX, PDF, PNG and one HTML page.

    FOLDER is a run folder or a parent of run folders. Runs that differ in the seed alone form one row. Nothing is trained.

    \b
    Example:
      fedkd report outputs/digits --baseline fedavg --target 0.8
    """
    from simulations.reports.builder import Options, build_report

    build_report(list(folders), output, Options(baseline, target, interval, until, figures))
    return OK


@click.command(name="reproduce", context_settings={"ignore_unknown_options": True})
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
    from simulations.cli.usage import check_words
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


def run(arguments: Sequence[str]) -> int:
    """Run the command by itself. Returns the exit code."""
    try:
        with one_line_errors():
            return run_command(report_command.main, arguments, "python -m simulations.report")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else OK
