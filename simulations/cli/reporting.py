"""The subcommands ``report`` and ``reproduce``. ``python -m simulations.report`` runs the first too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fedkd.files import with_home
from simulations.cli import completion
from simulations.cli.exit_codes import OK, one_line_errors
from simulations.cli.usage import FilePath, check_words, run_command
from simulations.reports.metrics import ALIASES, METRICS

METRIC_NAMES = ", ".join([*ALIASES, *(name for name in METRICS if name not in ALIASES.values())])
NAMES = "A,B,..."
FOLDER = FilePath()


@click.command(name="report", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("words", nargs=-1, metavar="FOLDER... [KEY=VALUE]...", shell_complete=completion.report_words)
@click.option("--output", type=FOLDER, metavar="FOLDER", help="Where the files go. Default: 'report' beside the runs.")
@click.option("--report", metavar="PRESET", help="A yaml file with options, or an option of conf/report, such as two_column.")
@click.option("--baseline", metavar="STRATEGY", help="The strategy (or row of the table) that others are compared with. Default: fedavg.")
@click.option("--target", type=float, metavar="ACCURACY", help="Add the rounds, bytes and time to this accuracy, in 0..1.")
@click.option("--until", type=int, metavar="ROUND", help="Report the runs as they were after this round.")
@click.option(
    "--metric",
    metavar="NAME",
    help=f"The metric that is compared and drawn: {METRIC_NAMES}, or any accuracy of metrics.csv. Default: global and local.",
)
@click.option("--interval", metavar="t|bootstrap", help="95 % interval over seeds: Student's t (default) or BCa bootstrap.")
@click.option("--spread", metavar="interval|std", help="After the sign ± and in bands: the interval (default) or the standard deviation.")
@click.option("--decimals", type=int, metavar="N", help="Digits after the point of accuracies in percent.")
@click.option("--labels", "--label", multiple=True, metavar="NAME=TEXT", help="Printed name of a strategy or setting (repeatable).")
@click.option("--order", metavar=NAMES, help="Strategies in this order.")
@click.option("--strategies", metavar=NAMES, help="These strategies alone.")
@click.option("--settings", metavar=NAMES, help="These settings alone, in this order.")
@click.option("--figures/--no-figures", default=None, help="Draw figures (default), or print tables alone.")
@click.option("--panels", metavar="none|settings", help="One figure with a panel per setting, and one table of settings x strategies.")
@click.option("--width", type=float, metavar="INCHES", help="Width of figures.")
@click.option("--font-size", type=float, metavar="POINTS", help="Font size of figures.")
@click.option("--smoothing", type=int, metavar="ROUNDS", help="Moving average of curves over this many evaluated rounds.")
@click.option("--band", metavar="fill|lines|none", help="How the spread is drawn around curves.")
@click.option("--formats", metavar="pdf,png,svg", help="File formats of figures.")
def report_command(words: Sequence[str], output: Path | None, labels: Sequence[str], **options: Any) -> int:
    """Write tables and figures of runs: CSV, Markdown, LaTeX, figures and one HTML page.

    FOLDER is a run folder or a parent of run folders. Runs that differ in the seed alone form one row. Nothing is trained.
    KEY=VALUE sets an option like its flag: report=two_column decimals=1.

    \b
    Example:
      fedkd report outputs/digits --baseline fedavg --target 0.8
    """
    from simulations.reports.builder import report_folders
    from simulations.reports.options import options_from

    paths = {word: Path(with_home(word)) for word in words}
    folders = [path for word, path in paths.items() if "=" not in word or path.exists()]
    pairs = [word.partition("=") for word, path in paths.items() if path not in folders]
    if not folders:
        raise click.UsageError("FOLDER must be given: a run folder or a parent of run folders, such as outputs")
    given = {key.replace("-", "_"): parsed(value) for key, _, value in pairs}
    given |= {key: value for key, value in options.items() if value is not None}
    given |= {"labels": list(labels)} if labels else {}
    report_folders(folders, options_from(given), output)
    return OK


def parsed(text: str) -> Any:
    """A value as YAML has it."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def run(arguments: Sequence[str]) -> int:
    """Run the command by itself. Returns the exit code."""
    try:
        with one_line_errors():
            return run_command(report_command.main, arguments, "python -m simulations.report")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else OK


@click.command(name="reproduce", context_settings={"ignore_unknown_options": True})
@click.argument("experiment", shell_complete=completion.experiments)
@click.option("--plan", is_flag=True, help="Show which runs are finished, interrupted and missing; exit code 3 where some are missing.")
@click.option("--table-only", is_flag=True, help="Print the table of the finished runs; nothing is run and no data are needed.")
@click.option("--seeds", metavar=NAMES, help="Seeds. Default: the experiment's.")
@click.option("--settings", metavar=NAMES, help="Settings by name, rows of the table. Default: all.")
@click.option("--strategies", metavar=NAMES, help="Strategies by name. Default: all.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at a time, each in its own process. Default: one per core.")
@click.option("--quiet", is_flag=True, help="One plain line per run instead of moving bars, as for a log file.")
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
    if plan and table_only:
        raise click.UsageError("--plan must be given without --table-only")
    from simulations.experiments.reproduce import plan_reproduction, reproduce

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
