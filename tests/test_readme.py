"""The README says what is so: its commands, its choices, its twenty-line strategy."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

from simulations.setup import strategy_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_choices_are_those_of_conf() -> None:
    """The table of choices names every yaml of its groups, and no other."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|$", README, re.MULTILINE))
    assert set(rows) == {
        "strategy",
        "data",
        "partition",
        "shift",
        "model",
        "public_data",
        "distiller",
        "source",
        "recipe",
        "augmentation",
        "engine",
    }
    for group, text in rows.items():
        named = {word for word in re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", text))}
        assert named == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}, group


def test_the_example_strategy_runs_as_written(tmp_path: Path) -> None:
    """The block becomes the module that its first line names, and the command below it runs; at beta 0 it is FedAvg."""
    block = re.search(r"```python\n# (\w+)\.py\n(.*?)```\n\n```\npython -m simulations\.run (.*?)\n```", README, re.DOTALL)
    assert block is not None
    name, code, overrides = block.groups()
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    (tmp_path / f"{name}.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    accuracies = []
    for extra in (overrides.split(), [*overrides.split()[:-1], "+strategy.beta=0.0"], ["strategy=fedavg"]):
        command = [sys.executable, "-m", "simulations.run", *extra, "rounds=2", "engine=local", f"output={tmp_path}", "progress=false"]
        done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.splitlines()[-1].removeprefix("run: "))
        accuracies.append([line.split(",")[1:4] for line in (folder / "metrics.csv").read_text().splitlines()[1:]])
    assert accuracies[0] != accuracies[1] == accuracies[2]


def test_files_and_modules_that_it_names_exist() -> None:
    for path in re.findall(r"\b(?:fedkd|strategies|conf|simulations|tests)/[\w/.]*", README):
        assert (ROOT / path.rstrip(".")).exists(), path
    for module in re.findall(r"python -m (simulations[\w.]*)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def test_speeds_are_those_that_were_measured() -> None:
    """The table of speeds holds every figure of the benchmark's output, rounded to two digits."""
    lines = (ROOT / "simulations" / "results" / "engine.txt").read_text().splitlines()
    measured = {key: float(value) for key, value in (line.split() for line in lines if not line.startswith("#"))}
    table = README.partition("| figure | what | times as fast, or ratio |")[2].partition("Medians of ratios")[0]
    rows = re.findall(r"^\| ([a-z_0-9, ]+) \| .* \| (.*) \|$", table, re.MULTILINE)
    shown = {key: value for keys, values in rows for key, value in zip(keys.split(", "), values.split(", "), strict=True)}
    assert shown == {key: f"{value:.2g}" for key, value in measured.items()}


def test_the_table_of_ingredients_is_the_code_s_own() -> None:
    assert strategy_table.table() in README


def test_tables_of_experiments_are_those_that_were_kept() -> None:
    """Row by row, or every difference that is told of one, and the tables' means are those of the runs that were kept beside them."""
    kept = sorted((ROOT / "simulations" / "results").glob("*/runs.csv"))
    tables = {path.parent.name: (path.parent / "table.md").read_text(encoding="utf-8") for path in kept}
    for name in ("fedgen_table1_mnist", "fedgen_table3"):
        assert "\n".join(line for line in tables[name].splitlines() if line.startswith("|")) in README
    section = README.partition("### Which parts of FedGen carry its gain")[2].partition("\n## ")[0]
    shown = re.findall(r"[+-]\d+\.\d+ ± \d+\.\d+", section)
    assert len(shown) > 15 and not [one for one in shown if one not in tables["fedgen_ablation"]]
    for path in kept:
        runs, table = pd.read_csv(path), pd.read_csv(path.parent / "table.csv")
        for figure in runs.columns[4:]:
            if path.parent.name == "fedgen_table3":  # ratios to FedAvg's, by seed
                runs[figure] /= runs["seed"].map(runs[runs["strategy"] == "FedAvg"].set_index("seed")[figure])
            means = runs.groupby(["setting", "strategy"])[figure].mean()
            shown = table.set_index(["setting", "strategy"])[f"{figure}_mean"]
            pd.testing.assert_series_equal(means.reindex(shown.index), shown, check_names=False)
            assert table["num_seeds"].tolist() == runs.groupby(["setting", "strategy"]).size().reindex(shown.index).tolist()


def test_results_of_distillation_are_those_of_the_reports() -> None:
    """Every mean with its interval that the sections on real images show stands in a report that was kept."""
    section = README.partition("### On real images")[2].partition("## Add a strategy")[0]
    shown = re.findall(r"[+-]?\d+\.\d+ ± \d+\.\d+", section)
    kept = "\n".join(path.read_text() for path in (ROOT / "simulations" / "results").glob("*/distillation.md"))
    assert len(shown) > 20
    assert not [one for one in shown if one not in kept]
