"""The subcommands that compute: ``run``, ``sweep``, ``tune``, ``distill``, ``export``, ``heterogeneity``, ``bench``."""

from collections.abc import Sequence
from pathlib import Path

import click

from simulations.cli import completion
from simulations.cli.exit_codes import FAILED, OK
from simulations.cli.usage import FilePath

HYDRA = {"ignore_unknown_options": True, "allow_interspersed_args": True}
"""Words that click does not know are Hydra's."""


def floats(ctx: click.Context, param: click.Parameter, text: str | None) -> list[float] | None:
    """``0.01,0.03`` as numbers."""
    if text is None:
        return None
    try:
        return [float(one) for one in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"must be numbers with commas between, got {text!r}") from error


@click.command(name="run", context_settings=HYDRA)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...", shell_complete=completion.run_words)
def run_command(words: Sequence[str]) -> int:
    """One federated run, or with -m one after the other.

    A finished run is skipped, an interrupted one continues from its last checkpoint. The last line is 'run: FOLDER'.

    \b
    Example, ten seconds:
      fedkd run strategy=fedgen partition.alpha=0.1 rounds=10 engine=local

    'fedkd describe run' lists the keys, 'fedkd describe' the groups that can be chosen as GROUP=OPTION. Hydra's own options work too:
    '-m' for a serial sweep, which goes on past runs that fail, '--cfg job' prints the configuration, '--hydra-help' lists them.
    """
    from simulations.cli.hydra_command import run_hydra

    run_hydra("config", words, "fedkd run")
    return OK


@click.command(name="distill", context_settings=HYDRA)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...", shell_complete=completion.distill_words)
def distill_command(words: Sequence[str]) -> int:
    """Train a student from the model of a run, or from a teacher that is trained first.

    teacher_run=FOLDER takes the global model of a run and its data; without it teacher=MODEL is trained once. A finished training is
    skipped, an interrupted one continues. The last line is 'run: FOLDER'.

    \b
    Example, a minute:
      fedkd distill teacher=resnet14 student=resnet8 distiller=kd epochs=2

    'fedkd describe distill' lists the keys. Hydra's own options work too: '-m' for a serial sweep, '--cfg job' prints the configuration.
    """
    from simulations.cli.hydra_command import run_hydra

    run_hydra("distill", words, "fedkd distill")
    return OK


@click.command(name="sweep", context_settings=HYDRA)
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at a time, each in its own process. Default: one per core.")
@click.option("--quiet", is_flag=True, help="One plain line per run instead of moving bars, as for a log file.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="KEY=A,B [KEY=VALUE]...", shell_complete=completion.run_words)
def sweep_command(jobs: int | None, quiet: bool, words: Sequence[str]) -> int:
    """All combinations of the values that commas separate, several runs at a time.

    Each run has a line with its progress, and each run that ends says how much time is left for all. A run that fails does not stop the
    others; the same command makes what is missing. Each line of the result is 'run: FOLDER'.

    \b
    Example, half a minute on two cores:
      fedkd sweep --jobs 2 strategy=fedavg,fedgen seed=0,1,2 rounds=10
    """
    from simulations.cli.usage import check_words
    from simulations.experiments.grid import run_grid

    check_words(words, ("--jobs", "--quiet"))
    folders, failed = run_grid(words, jobs=jobs, quiet=quiet)
    for label, why in failed.items():
        click.echo(f"failed: {label}: {why}", err=True)
    for folder in folders:
        click.echo(f"run: {folder}")
    return FAILED if failed else OK


@click.command(name="tune", context_settings=HYDRA)
@click.option("--distiller", is_flag=True, help="Tune the weight of a distillation method instead of a strategy's key.")
@click.option("--key", default="optimizer.lr", show_default=True, help="The key that is chosen; with --distiller the method's weight.")
@click.option("--grid", callback=floats, metavar="A,B,...", help="Its values (0.01,0.03,0.1); with --distiller multiples (0.3,1,3).")
@click.option("--validation", type=float, default=0.2, show_default=True, help="Fraction of the training examples that is held out.")
@click.option("--table", type=FilePath(), metavar="FILE", help="The file of choices (OUTPUT/NAME/tuned.csv).")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...", shell_complete=completion.run_words)
def tune_command(distiller: bool, key: str, grid: list[float] | None, validation: float, table: Path | None, words: Sequence[str]) -> int:
    """Choose a hyperparameter on held-out training data, from the same values for every strategy.

    No test example is used. strategy=A,B (or distiller=A,B) tunes several. The choice is appended to a CSV file, which a run reads with
    tuned_params=FILE.

    \b
    Example, half a minute:
      fedkd tune --key optimizer.lr --grid 0.01,0.03,0.1 strategy=fedavg rounds=10 engine=local
    """
    from simulations.cli.usage import check_words
    from simulations.experiments.tuning import tune

    check_words(words, ("--distiller", "--key", "--grid", "--validation", "--table"))
    tune(words, key=key, grid=grid, validation_fraction=validation, table=table, distiller=distiller)
    return OK


@click.command(name="export")
@click.argument("run", metavar="RUN", type=FilePath(), shell_complete=completion.run_folders)
@click.option("--client", type=click.IntRange(min=0), metavar="K", help="This client's own model instead of the global model.")
@click.option("--output", type=FilePath(), metavar="FOLDER", help="Where the files go. Default: RUN/export.")
def export_command(run: Path, client: int | None, output: Path | None) -> int:
    """Write the model of a run: the global model, a client's, or the student of a distillation.

    NAME.safetensors holds the tensors, NAME.json the network and the scaling of its input, NAME.pt2 a program that torch.export.load reads
    without fedkd. NAME is global_model, client_K or student.

    \b
    Example:
      fedkd export "$(fedkd run rounds=2 strategy=fedavg engine=local | sed -n 's/^run: //p')"
    """
    from simulations.federation.model_export import export_model

    for path in export_model(run, client, output):
        click.echo(path)
    return OK


@click.command(name="heterogeneity", context_settings=HYDRA)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...", shell_complete=completion.run_words)
def heterogeneity_command(words: Sequence[str]) -> int:
    """Draw which labels clients hold under each partition, and how they see images under each shift; nothing is trained.

    The data, the seed and the number of clients are those that the words choose; a partition and a shift that they choose are added.
    Writes heterogeneity.pdf and heterogeneity.png into the folder 'output'.

    \b
    Example:
      fedkd heterogeneity data=digits num_clients=10 output=outputs
    """
    from simulations.cli.usage import check_words
    from simulations.experiments.heterogeneity import compare

    check_words(words, ())
    for path in compare(words):
        click.echo(path)
    return OK


@click.command(name="bench", context_settings=HYDRA)
@click.argument("name", required=False, shell_complete=completion.benchmarks)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[WORD]...", shell_complete=completion.run_words)
def bench_command(name: str | None, words: Sequence[str]) -> int:
    """Run a benchmark; without NAME list them.

    WORDs are the benchmark's own, the names of its figures and KEY=VALUE. Each line of the result is '<figure> <value>'.

    \b
    Example, five minutes:
      fedkd bench distillation kd teacher=resnet20 student=resnet8
    """
    import runpy
    import sys

    from fedkd.errors import ConfigError
    from simulations.cli.catalog import benchmarks
    from simulations.cli.rendering import columns
    from simulations.overrides import nearest

    known = benchmarks()
    if name is None:
        click.echo(columns([{"name": one, "line": line} for one, line in known.items()], ("name", "line"), header=False))
        return OK
    if name not in known:
        raise ConfigError(f"benchmark must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    sys.argv = [f"fedkd bench {name}", *words]
    runpy.run_module(f"simulations.benchmarks.{name}", run_name="__main__", alter_sys=True)
    return OK
