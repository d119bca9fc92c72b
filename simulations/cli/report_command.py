"""The subcommand ``report``, which ``python -m simulations.report`` runs too."""

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


def run(arguments: Sequence[str]) -> int:
    """Run the command by itself. Returns the exit code."""
    try:
        with one_line_errors():
            return run_command(report_command.main, arguments, "python -m simulations.report")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else OK
