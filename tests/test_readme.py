"""The pages say what is so: their commands are valid, their code runs, their paths exist, and their numbers were measured."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest

from fedkd.config.validation import check_distillation, check_run
from simulations.cli.main import cli
from simulations.cli.main import main as command
from simulations.config import compose
from simulations.distillation.runner import compose_distillation
from simulations.experiments.grid import expand
from simulations.reports.statistics import holm, interval, paired
from tests import pages as generated
from tests.processes import ROOT, Command, Ended

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "simulations" / "results"
FOLDERS = [ROOT / name for name in ("fedkd", "strategies", "conf", "simulations")]
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in folder.rglob("*.md"))])
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md" and page.parent.parent != RESULTS]


def named(path: Path) -> str:
    """The page's path from the root."""
    return str(path.relative_to(ROOT))


def commands(page: Path) -> Iterator[str]:
    """The commands ``fedkd ...`` in the blocks of code of a page, whose lines that end with a backslash are joined."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for block in [text for language, text in blocks if language in ("", "bash", "sh", "shell")]:
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            for part in line.split(" && "):
                if part.startswith("fedkd "):
                    yield part


PLUGINS = {
    "hydra/launcher=joblib": "hydra_joblib_launcher",
    "hydra/launcher=submitit_slurm": "hydra_submitit_launcher",
    "hydra/sweeper=optuna": "hydra_optuna_sweeper",
}
"""Words that need a plugin of Hydra, and its package."""

COMMANDS = [(page, line) for page in PAGES for line in dict.fromkeys(commands(page))]


def write_modules(page: Path, folder: Path) -> dict[str, str]:
    """Write the modules that a page shows, whose first line is their file's name, into ``folder``: code by name of file."""
    modules = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    for name, code in modules.items():
        (folder / name).write_text(code, encoding="utf-8")
    return modules


# ------------------------------------------------------------------------------------------------------------- commands
@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{named(page)}: {line[:60]}" for page, line in COMMANDS])
def test_a_command_on_a_page_is_valid(page, line, tmp_path, monkeypatch):
    """The subcommand and its options exist, and the first and the last combination of its values compose."""
    write_modules(page, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(line, comments=True)[1:]
    subcommand = cli.get_command(click.Context(cli), name)
    assert subcommand is not None, name
    if "..." in line:
        pytest.fail("a command runs as it is pasted")
    context = subcommand.make_context(name, list(words), resilient_parsing=name in ("report", "list", "export"))
    overrides = [word for word in context.params.get("words", words) if ("=" in word or word.startswith("~")) and not word.startswith("-")]
    for plugin in {PLUGINS[word] for word in overrides if word in PLUGINS}:
        pytest.importorskip(f"hydra_plugins.{plugin}")
    overrides = [word for word in overrides if "interval(" not in word]  # Optuna draws the value
    if "searchpath=mylab" in overrides:
        pytest.skip("the folder is written by the command before it")
    if name in ("run", "sweep") or (name == "tune" and "--distiller" not in words):
        for combination in ends(overrides):
            check_run(compose(combination))
    elif name == "distill" or name == "tune":
        for combination in ends(overrides):
            check_distillation(compose_distillation(combination))
    elif name == "reproduce":
        compose([f"experiment={words[0]}", *overrides])


def ends(overrides: list[str]) -> list[list[str]]:
    """The first and the last combination of swept values."""
    combinations = expand(overrides)
    return [combinations[0], combinations[-1]] if len(combinations) > 1 else combinations


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_paths_links_and_modules_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:fedkd|strategies|conf|simulations|tests)/[\w/.]*)`", text):
        assert (ROOT / path.rstrip(".")).exists(), path
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= headings
    for module in re.findall(r"python -m ((?:simulations|tests|fedkd)[\w.]*)", text):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_readme_has_at_most_200_lines():
    assert len(README.splitlines()) <= 200


# ----------------------------------------------------------------------------------------------------------------- code
def block(marker: str) -> str:
    """The code below ``<!-- tested: marker -->``."""
    found = re.search(rf"<!-- tested: {marker} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found, marker
    return found[1]


def test_the_python_example_runs_as_written(tmp_path):
    code = block("python") + "\nprint(len(rounds), type(model).__name__, model.training)\nraise SystemExit(0)"
    done = Command((), tmp_path, before=code, forked=True).end()
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "20 FedGenCNN False"
    assert (tmp_path / "convergence.pdf").is_file()


def fedkd(*words: str, where: Path) -> Ended:
    """Run ``fedkd`` in the folder ``where``, which gets the run folder."""
    given = (*words, "engine=local", f"output={where}", "progress=false")
    ended = Command(given, where, module="simulations.cli.main", forked=True).end()
    assert ended.code == 0, ended.err
    return ended


def test_the_example_strategy_runs_as_written(tmp_path):
    """The block becomes the module that its first line names, and the command below it runs. At beta 0 it is FedAvg."""
    code = block("strategy")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    (tmp_path / f"{code.splitlines()[0].removeprefix('# ')}").write_text(code)
    line = re.search(r"^fedkd run (strategy=fedavg strategy\._target_.*)$", README, re.MULTILINE)
    assert line
    accuracies = []
    for words in (line[1].split(), [*line[1].split()[:-1], "+strategy.beta=0.0"], ["strategy=fedavg"]):
        metrics = pd.read_csv(fedkd("run", *words, "rounds=2", where=tmp_path).folder / "metrics.csv")
        accuracies.append(metrics[["global_test_accuracy", "global_test_loss", "local_test_accuracy"]].to_numpy().tolist())
    assert accuracies[0] != accuracies[1] == accuracies[2]


OWN_PARTS = [(page, line) for page, line in COMMANDS if "._target_=" in line and page.name == "README.md" and "flwr." not in line]
OWN_PARTS = [(page, line) for page, line in OWN_PARTS if page.parent != ROOT]


@pytest.mark.parametrize(("page", "line"), OWN_PARTS, ids=[f"{named(page)}: {line[:60]}" for page, line in OWN_PARTS])
def test_a_part_of_one_s_own_runs_as_written(page, line, tmp_path):
    """The modules that the page shows, and the command below them."""
    assert write_modules(page, tmp_path)
    fedkd(*shlex.split(line)[1:], "rounds=1", "local_steps=2", where=tmp_path)


# -------------------------------------------------------------------------------------------------------------- numbers
def cells_of(line: str) -> list[str]:
    """The cells of a row of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def table_below(marker: str) -> list[list[str]]:
    """The rows of the table below ``<!-- measured: marker -->``, without header and rule."""
    text = README.partition(f"<!-- measured: {marker} -->\n")[2].partition("\n\n")[0]
    return [cells_of(line) for line in text.splitlines()][2:]


def table_rows(path: Path) -> list[list[str]]:
    """All rows of the tables of a Markdown file."""
    return [cells_of(line) for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]


def test_the_first_table_is_the_one_that_was_kept():
    kept = [[cell.strip("*") for cell in row[:6]] for row in table_rows(RESULTS / "digits" / "results.md")[2:4]]  # the best one is bold
    assert len(kept) == 2 and table_below("digits") == kept


def test_the_published_table_is_the_one_that_was_kept():
    header, *rows = table_rows(RESULTS / "fedgen_table1_mnist" / "table.md")
    columns = [header.index(name) for name in ("paper", "ours, best 5 rounds", "ours, global acc., last 10")]
    kept = {(row[0], row[1]): [row[column] for column in columns] for row in rows}
    shown = table_below("fedgen_table1_mnist")
    assert len(shown) == 5
    for strategy, *cells in shown:
        assert cells == kept["alpha 0.1", strategy] + kept["alpha 1", strategy]


def test_ratios_of_speed_are_those_that_were_measured():
    lines = (RESULTS / "engine.txt").read_text(encoding="utf-8").splitlines()
    measured = {key: f"{float(value):.2g}" for key, value in (line.split() for line in lines if not line.startswith("#"))}
    shown = [ratio for _, ratio in table_below("engine")]
    assert shown == [measured[key] for key in ("local_step", "round_vs_loop", "round_vs_flower", "thousand_vs_flower")]
    page = table_rows(ROOT / "simulations" / "benchmarks" / "README.md")
    shown = {key: value for row in page for key, value in zip(row[0].split(", "), row[-1].split(", "), strict=False)}
    assert {key: shown.get(key) for key in measured} == measured


def test_kept_tables_stand_on_the_page_of_results_and_are_means_of_their_runs():
    cells = table_rows(RESULTS / "README.md")
    kept = sorted(RESULTS.glob("*/runs.csv"))
    assert kept
    for path in kept:
        runs, table = pd.read_csv(path), pd.read_csv(path.parent / "table.csv")
        for metric in runs.columns[4:]:
            if path.parent.name == "fedgen_table3":  # ratios to FedAvg's, by seed
                runs[metric] /= runs["seed"].map(runs[runs["strategy"] == "FedAvg"].set_index("seed")[metric])
            means = runs.groupby(["setting", "strategy"])[metric].mean()
            shown = table.set_index(["setting", "strategy"])[f"{metric}_mean"]
            pd.testing.assert_series_equal(means.reindex(shown.index), shown, check_names=False)
            assert table["num_seeds"].tolist() == runs.groupby(["setting", "strategy"]).size().reindex(shown.index).tolist()
    for name in ("fedgen_table1_mnist", "fedgen_table3"):
        for row in table_rows(RESULTS / name / "table.md")[2:]:
            assert any(row[1] in line and all(value in " ".join(line) for value in row[3:4]) for line in cells), row


def test_intervals_of_distillations_are_those_of_the_reports():
    """Every mean with its interval in the sections on real images stands in a report that was kept."""
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    section = page.partition("### CIFAR-100, reduced: eight methods")[2].partition("## Experiments without measured results")[0]
    shown = re.findall(r"[+-]?\d+\.\d+ ± \d+\.\d+", section)
    kept = "\n".join(path.read_text(encoding="utf-8") for path in RESULTS.glob("*/distillation.md"))
    assert len(shown) > 20
    assert not [one for one in shown if one not in kept]


def test_the_table_on_fashion_mnist_follows_from_its_rows():
    """Means, half-widths, paired differences from FedAvg, and Holm's p over all tests of the three columns; FedNova is FedAvg there."""
    page = (RESULTS / "README.md").read_text(encoding="utf-8").partition("## Fashion-MNIST, tuned alike")[2]
    header, _, *lines = [line for line in page.partition("\n**Local acc.**")[0].splitlines() if line.startswith("|")]
    shown = {cells[0]: cells[1:] for line in lines for cells in [[cell.strip() for cell in line.strip("|").split("|")]]}
    columns = ("local_last10", "global_last10", "own_mixture_final")
    runs = pd.read_csv(RESULTS / "strategies_fashion_mnist" / "seeds.csv").set_index(["method", "seed"])
    values = {(method, column): 100 * runs.loc[method][column] for method in shown for column in columns}
    tests = {
        (method, column): found
        for (method, column), value in values.items()
        if np.isfinite((found := paired(gain := value - values["FedAvg", column].reindex(value.index))).t_test) and gain.any()
    }
    assert header.count("p, Holm") == 3 and len(tests) == 63
    corrected = dict(zip(tests, holm([one.t_test for one in tests.values()]), strict=True))
    for method, cells in shown.items():
        for place, column in zip((2, 5, 8), columns):
            mean, _, high = (float(one) for one in interval(values[method, column].dropna()))
            test = tests.get((method, column))
            assert numbers(cells[place]) == pytest.approx([] if np.isnan(mean) else [mean, high - mean], abs=0.0051), (method, column)
            found = [] if test is None else [test.mean, test.high - test.mean]
            assert numbers(cells[place + 1]) == pytest.approx(found, abs=0.0051), (method, column)
            p_value = [] if test is None else [corrected[method, column]]
            assert numbers(cells[place + 2]) == pytest.approx(p_value, abs=0.00051), (method, column)


def numbers(text: str) -> list[float]:
    """The numbers of a cell; none for a dash."""
    return [float(one) for one in re.findall(r"[+-]?\d+\.\d+", text)]


# ---------------------------------------------------------------------------------------------------- generated blocks
@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- generated:" in page.read_text(encoding="utf-8")], ids=named)
def test_generated_blocks_are_up_to_date(page):
    assert generated.rewritten(page) == page.read_text(encoding="utf-8"), "run: python -m tests.pages"


def test_the_command_of_the_readme_answers(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        command(["--version"])
    assert end.value.code in (0, None) and "0.2.0" in capsys.readouterr().out
