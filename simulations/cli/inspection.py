"""The subcommands that compute nothing: ``list``, ``describe``, ``new``, ``completion``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from fedkd.errors import ConfigError
from fedkd.files import with_home
from simulations.cli import completion, rendering
from simulations.cli.exit_codes import OK, WRONG
from simulations.cli.usage import FilePath
from simulations.overrides import nearest
from simulations.run_folder import listing


@click.command(name="list")
@click.argument("words", nargs=-1, metavar="[FOLDER]... [KEY=VALUE]...", shell_complete=completion.list_words)
@click.option("--status", type=click.Choice(listing.STATES), help="Runs of this state alone.")
@click.option("--strategy", metavar="NAME", help="Runs of this strategy (or distillation method) alone; several with commas.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: accuracies in 0..1, ages in seconds.")
@click.option("--remove", is_flag=True, help="Remove the run folders that are listed. Without --yes they are printed and stay.")
@click.option("--yes", is_flag=True, help="Remove without asking; only with --remove.")
def list_command(words: Sequence[str], status: str | None, strategy: str | None, as_json: bool, remove: bool, yes: bool) -> int:
    """List runs: hash, strategy, data, setting, seed, round, state, accuracy, age.

    FOLDER is a run folder or a parent of run folders (default: outputs). KEY=VALUE keeps the runs whose configuration has this value,
    or one of several with commas.

    \b
    Example:
      fedkd list outputs --status finished partition.alpha=0.1 seed=0,1
    """
    if yes and not remove:
        raise click.UsageError("--yes needs --remove")
    given = [Path(with_home(word)) for word in words if "=" not in word]
    filters = [word for word in words if "=" in word]
    if remove and not (given or filters or status or strategy):
        raise click.UsageError("--remove needs a folder, a filter or --status; all runs would go")
    rows = find_rows(given or [Path("outputs")], status, filters)
    rows = [row for row in rows if strategy is None or row["strategy"] in strategy.split(",")]
    if remove:
        return remove_runs(rows, yes)
    if as_json:
        click.echo(rendering.as_json(rows))
    elif rows:
        click.echo(run_table(rows))
    if not rows:
        click.echo("no run matches", err=True)
    return OK


@click.command(name="describe")
@click.argument("group", required=False, shell_complete=completion.group_or_option)
@click.argument("option", required=False, shell_complete=completion.group_or_option)
@click.argument("words", nargs=-1, metavar="[searchpath=FOLDER]")
@click.option("--markdown", "form", flag_value="markdown", help="Print Markdown; without GROUP a section for every group.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.option(
    "--table", is_flag=True, help="With GROUP strategy: components and measured bytes of every strategy, as Markdown. Needs seconds."
)
def describe_command(group: str | None, option: str | None, words: Sequence[str], form: str | None, table: bool) -> int:
    """Describe what can be chosen as GROUP=OPTION, and an option's parameters.

    GROUP is a folder of conf (strategy, model, partition, data, distiller, experiment, ...), or run or distill for the keys of these
    commands. Without GROUP all groups are listed, with OPTION its yaml, docstring and parameters.

    \b
    Example:
      fedkd describe strategy fedgen
    """
    from simulations.cli import description

    given = [word for word in (group, option) if word is not None]
    names, overrides = [word for word in given if "=" not in word], [*(word for word in given if "=" in word), *words]
    if wrong := [word for word in overrides if not word.startswith("searchpath=")]:
        raise click.UsageError(f"words after OPTION must be searchpath=FOLDER, got {wrong[0]!r}")
    group, option = (*names, None, None)[:2]
    if table:
        if group != "strategy":
            raise click.UsageError(f"--table must be used with the group strategy, got {group!r}")
        from simulations.setup.strategy_table import table as strategy_table

        click.echo(strategy_table())
        return OK
    click.echo(description.render(group, option, form or "text", overrides))
    return OK


@click.command(name="new")
@click.argument("kind", type=click.Choice(("strategy", "model", "partition", "data", "distiller")))
@click.argument("path", metavar="FOLDER/NAME", type=FilePath())
def new_command(kind: str, path: Path) -> int:
    """Write a working template of your own: a module, its yaml, and a test that passes.

    FOLDER/NAME gives FOLDER/NAME.py, FOLDER/conf/KIND/NAME.yaml and FOLDER/test_NAME.py. Files that exist are never overwritten.
    'searchpath=FOLDER' on any command finds the option, as does a file fedkd.yaml in the current folder that says 'searchpath: FOLDER'.

    \b
    Example:
      fedkd new strategy mylab/fedmax && fedkd run strategy=fedmax searchpath=mylab rounds=2
    """
    from simulations.cli.templates import write

    for file in write(kind, path):
        click.echo(file)
    command = {"distiller": "distill"}.get(kind, "run")
    click.echo(f"next: pytest {path.parent}/test_{path.name}.py", err=True)
    click.echo(f"      fedkd {command} {kind}={path.name} searchpath={path.parent}", err=True)
    return OK


@click.command(name="completion")
@click.argument("shell", type=click.Choice(completion.SHELLS))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> int:
    """Print the script by which a shell completes subcommands, options, GROUP=OPTION, keys and run folders.

    \b
    Example, for this session of bash (put the line into ~/.bashrc to keep it):
      eval "$(fedkd completion bash)"
    In zsh the line is the same with zsh; in fish: fedkd completion fish | source
    """
    root: Any = ctx.find_root().command
    click.echo(completion.script(shell, root), nl=False)
    return OK


COLUMNS = ("hash", "strategy", "data", "setting", "seed", "round", "status", "global acc.", "local acc.", "age")
RIGHT = ("seed", "round", "global acc.", "local acc.", "age")
UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def find_rows(folders: Sequence[Path], status: str | None, filters: Sequence[str]) -> list[dict[str, Any]]:
    """The runs below ``folders``, each once, the oldest first.

    Args:
        folders: run folders or their parents.
        status: None for all.
        filters: words ``KEY=VALUE`` or ``KEY=A,B``.

    Raises:
        RunFolderError: a folder does not exist.
        ConfigError: a filter names a key that no run has.
    """
    where = {key: filter_values(text) for key, _, text in (word.partition("=") for word in filters)}
    if where:
        check_keys(folders, list(where))
    found = {row["path"]: row for folder in folders for row in listing.list_folder(folder, status=status, where=where)}
    return sorted(found.values(), key=lambda row: -row["age_seconds"])


def filter_values(text: str) -> list[Any]:
    """``0,1`` as the values 0 and 1; ``[8, 16]`` as one list."""
    import yaml

    parts = [text] if text.startswith("[") else text.split(",")
    return [yaml.safe_load(part) for part in parts]


def check_keys(folders: Sequence[Path], keys: Sequence[str]) -> None:
    """Refuse a key that no run has.

    Raises:
        ConfigError: naming the nearest key.
    """
    known: set[str] = set()
    for path in (path for folder in folders for path in listing.find_runs(folder)):
        config = listing.read_config(path)
        known |= {*_keys(config), *(config.get("choices") or {})}
    for key in keys:
        if known and key not in known:
            raise ConfigError(f"a filter must be a key of a run's configuration, got {key!r}{nearest(key, sorted(known))}")


def run_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Rows in columns; accuracies in %."""
    shown = [
        {
            **row,
            "seed": "" if row["seed"] is None else row["seed"],
            "round": f"{row['round']}/{row['rounds']}",
            "global acc.": percent(row["global_test_accuracy"]),
            "local acc.": percent(row["local_test_accuracy"]),
            "age": age_of(row["age_seconds"]),
        }
        for row in found
    ]
    return rendering.columns(shown, COLUMNS, right=RIGHT)


def percent(value: float | None) -> str:
    """An accuracy in %, with two decimals."""
    return "-" if value is None else f"{100 * value:.2f}"


def age_of(seconds: float) -> str:
    """In the largest unit that fits: ``3 h``."""
    name, size = next((one for one in UNITS if seconds >= one[1]), UNITS[-1])
    return f"{int(seconds / size)} {name}"


def remove_runs(found: Sequence[Mapping[str, Any]], yes: bool) -> int:
    """Remove run folders, or print them where ``yes`` is missing. Returns the exit code: 2 where one was kept."""
    code = OK
    folders = [Path(row["path"]) for row in found]
    obstacles = {folder: listing.removal_obstacle(folder) for folder in folders}  # before any is removed, as one can hold another
    for folder in folders:
        if (why := obstacles[folder]) is None and not yes:
            click.echo(f"would remove {folder}")
        elif (why := why or listing.remove(folder)) is not None:
            click.echo(f"kept: {folder}: {why}", err=True)
            code = WRONG
        else:
            click.echo(f"removed {folder}")
    if not yes:
        click.echo(f"{len(found)} run folders; nothing was removed, add --yes to remove them", err=True)
    return code


def _keys(node: Any, prefix: str = "") -> list[str]:
    """All dotted keys."""
    found = []
    for key, value in node.items() if isinstance(node, dict) else ():
        found.append(f"{prefix}{key}")
        found += _keys(value, f"{prefix}{key}.")
    return found
