"""The report: figures and tables from run folders with known numbers."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from omegaconf import OmegaConf
from scipy.stats import t as student

from simulations.report import main
from simulations.reports.figures import convergence
from simulations.reports.groups import group
from simulations.run_folder.reader import find_run_folders, read_run

COUNTS = np.array([[5, 0, 3], [0, 20, 1]])


def write(
    folder: Path,
    strategy: str = "fedavg",
    seed: int = 0,
    accuracy: Sequence[float | None] = (0.5, 0.6),
    every: int = 1,
    finished: bool = True,
    alpha: float = 0.1,
    global_model: bool = True,
    knobs: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A run folder with these accuracies in its evaluated rounds; on the clients' own labels they are 0.1 higher."""
    rounds = len(accuracy)
    folder.mkdir(parents=True)
    target = {"fedavg": "strategies.fedavg.FedAvg", "fedgen": "strategies.fedgen.FedGen"}.get(strategy, f"strategies.{strategy}.X")
    defaults = {
        "name": "digits",
        "seed": seed,
        "rounds": rounds,
        "num_clients": 2,
        "output": str(folder),
        "local_steps": 20,
        "strategy": {"_target_": target, **(knobs or {})},
        "data": {"_target_": "fedkd.data.digits.Digits", "root": str(folder)},
        "partition": {"_target_": "fedkd.partition.dirichlet.Dirichlet", "alpha": alpha},
        "engine": {"_target_": "x.Local"},
        "choices": {"strategy": strategy, "data": "digits", "partition": "dirichlet", "engine": f"engine{seed}"},
    }
    OmegaConf.save(OmegaConf.merge(defaults, config), folder / "config.yaml")
    values = pd.Series(accuracy, dtype=float).where([r % every == 0 for r in range(1, rounds + 1)])
    own = (values + 0.1).round(10)
    pd.DataFrame(
        {
            "round": range(1, rounds + 1),
            "accuracy": values if global_model else None,
            "loss": 1.0,
            "local_test_accuracy": own,
            "local_test_accuracy_bottom10": (values / 2),
            "local_test_accuracy_std": 0.1,
            "uplink_bytes": 1000,
            "downlink_bytes": 2000,
            "local_training_seconds": [9.0] + [1.0 + seed] * (rounds - 1),
            "server_seconds": 0.5,
            "evaluation_seconds": 0.25,
            "num_failures": 0,
        }
    ).to_csv(folder / "metrics.csv", index=False)
    np.savez(folder / "partition.npz", counts=COUNTS, test_counts=COUNTS)
    state = {"round": rounds if finished else 1, "rounds": rounds, "config": "0" * 12, "finished": finished}
    (folder / "checkpoint.json").write_text(json.dumps(state))
    return folder


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "report" / "results.csv").set_index("label")


def half_width(values: Sequence[float]) -> float:
    """The 95 % t interval by SciPy's own distribution object."""
    low, high = student.interval(0.95, len(values) - 1, loc=np.mean(values), scale=np.std(values, ddof=1) / len(values) ** 0.5)
    return (high - low) / 2


def test_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Means, extremes and intervals are those computed by hand; the best round is no headline."""
    for seed, last in enumerate((0.5, 0.6, 0.8)):
        write(tmp_path / f"r{seed}", seed=seed, accuracy=[0.1, 0.9] + [0.2] * 9 + [last])
    assert main([str(tmp_path)]) == 0
    row = table(tmp_path).loc["fedavg"]
    assert (row.num_seeds, row.seeds, row.rounds, row.last_evaluated_round) == (3, "0 1 2", 12, 12)
    last, ten = [0.5, 0.6, 0.8], [(0.2 * 9 + x) / 10 for x in (0.5, 0.6, 0.8)]
    for name, values in {
        "global_test_accuracy_final": last,
        "global_test_accuracy_last10": ten,
        "local_test_accuracy_final": [x + 0.1 for x in last],
        "local_test_accuracy_last10": [x + 0.1 for x in ten],
        "local_test_accuracy_bottom10_final": [x / 2 for x in last],
        "best5_rounds": [(1.0 + x + 0.1 + 0.3 * 3) / 5 for x in last],
        "uplink_bytes_total": [12e3] * 3,
        "downlink_bytes_total": [24e3] * 3,
        "local_training_seconds_median": [1.0, 2.0, 3.0],
        "server_seconds_median": [0.5] * 3,
        "evaluation_seconds_median": [0.25] * 3,
    }.items():
        found = [row[f"{name}_{what}"] for what in ("mean", "min", "max", "ci95")]
        wanted = [np.mean(values), min(values), max(values), 0.0 if len(set(values)) == 1 else half_width(values)]
        assert found == pytest.approx(wanted, abs=1e-9), name
    text = capsys.readouterr().out
    assert f"63.33 ± {100 * half_width(last):.2f}" in text and "MB up" in text
    assert (tmp_path / "report" / "results.md").read_text(encoding="utf-8").strip() in text
    written = text[text.index(str(tmp_path / "report")) :].splitlines()
    tables, drawn = ("headlines", "skew", "phases"), ("convergence", "convergence_by_bytes", "spread", "phases", "partition")
    names = ["results.csv", "results.md", "curves.csv", "report.html", *(f"{name}.{kind}" for name in tables for kind in ("csv", "tex"))]
    assert sorted(Path(path).name for path in written) == sorted(names + [f"{name}.{kind}" for name in drawn for kind in ("pdf", "png")])
    for path in written:
        assert Path(path).stat().st_size > 0, path


def test_evaluated_rounds_only(tmp_path: Path) -> None:
    """Rounds that were not evaluated are passed over: the last is the last evaluated one, and is named."""
    write(tmp_path / "a", accuracy=[r / 100 for r in range(1, 26)], every=2)
    assert main([str(tmp_path / "a"), "--no-figures"]) == 0  # a run folder itself
    row = table(tmp_path).loc["fedavg"]
    assert (row.last_evaluated_round, row.accuracy_last_mean) == (24, 0.24)
    assert row.accuracy_last_ten_mean == pytest.approx(np.mean([r / 100 for r in range(6, 25, 2)]))


def test_one_seed_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a")
    assert main([str(tmp_path), "--no-figures"]) == 0
    assert np.isnan(table(tmp_path).loc["fedavg"].accuracy_last_ci95)
    assert "60.00 |" in capsys.readouterr().out


def test_no_global_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a global model there is a dash, never a zero."""
    write(tmp_path / "a", global_model=False)
    assert main([str(tmp_path), "--no-figures"]) == 0
    row = table(tmp_path).loc["fedavg"]
    assert np.isnan(row.accuracy_last_mean) and row.local_test_accuracy_last_mean == 0.7
    assert " - |" in capsys.readouterr().out


def test_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that are unfinished, corrupt, unlike the rest, or there twice are listed with the reason, and count nowhere."""
    for seed in range(2):
        write(tmp_path / f"good{seed}", seed=seed, accuracy=[0.5, 0.6])
    write(tmp_path / "unfinished", seed=2, finished=False)
    (write(tmp_path / "unstarted", seed=2) / "checkpoint.json").unlink()
    whole = (tmp_path / "good0/metrics.csv").read_text()
    broken = {
        "empty": "",
        "rowless": whole.splitlines()[0] + "\n",
        "columns": "round,accuracy\n1,0.5\n2,0.6\n",
        "words": whole.replace("0.5,", "oops,"),
        "percent": whole.replace("0.6,", "60.0,"),
    }
    for name, text in broken.items():
        (write(tmp_path / name, seed=3) / "metrics.csv").write_text(text)
    (write(tmp_path / "yaml", seed=6) / "config.yaml").write_text("a: [1\n")
    (write(tmp_path / "rounds", seed=4) / "metrics.csv").unlink()
    (write(tmp_path / "unknown", seed=4) / "config.yaml").unlink()
    write(tmp_path / "trial", seed=2, evaluation={"examples": "validation"})
    write(tmp_path / "longer", seed=7, accuracy=[0.5, 0.6, 0.7])
    write(tmp_path / "seldom", seed=8, every=2)
    write(tmp_path / "judged", seed=8, evaluation={"split": "validation"})
    write(tmp_path / "twice", seed=1, accuracy=[0.5, 0.61])
    assert main([str(tmp_path), "--no-figures"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    notes = {Path(line.split(": ")[1]).name: line for line in lines}
    for name, reason in {
        "unfinished": "1 of 2 rounds",
        "unstarted": "no checkpoint.json",
        "empty": "unreadable",
        "rowless": "got 0 rows",
        "columns": "lacks the columns local_test_accuracy",
        "words": "numbers",
        "percent": "0..1",
        "yaml": "unreadable",
        "rounds": "no metrics.csv",
        "unknown": "config.yaml",
        "trial": "held-out training examples",
        "longer": "3 rounds",
        "seldom": "2 rounds, 1 of them evaluated",
        "judged": "unlike",
        "twice": "BUT NOT the same accuracies",
    }.items():
        assert reason in notes.pop(name), name
    assert not notes
    assert table(tmp_path).seeds.tolist() == ["0 1"]


@pytest.mark.parametrize("case", ["nothing", "missing", "unfinished", "unwritable"])
def test_failures(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is nothing to report, or nowhere to write it, the message says so and the exit code is 2."""
    runs = tmp_path / "runs"
    if case != "missing":
        runs.mkdir()
    if case in ("unfinished", "unwritable"):
        write(runs / "a", finished=case == "unwritable")
    (tmp_path / "file").touch()
    assert main([str(runs), "--output", str(tmp_path / "file" / "report")]) == 2
    message = {"nothing": "config.yaml and metrics.csv", "missing": "config.yaml and metrics.csv", "unfinished": "no finished run"}
    assert message.get(case, "--output must be a folder") in capsys.readouterr().err


def test_a_table_by_setting_where_there_are_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for alpha, accuracy in ((0.1, 0.5), (1.0, 0.75)):
        for strategy, gain in (("fedavg", 0.0), ("fedgen", 0.125)):
            write(tmp_path / f"{strategy}{alpha}", strategy, alpha=alpha, accuracy=[accuracy + gain] * 2)
    write(tmp_path / "prox", "fedprox", alpha=1.0, accuracy=[0.25, 0.25])
    assert main([str(tmp_path), "--no-figures"]) == 0
    tables = capsys.readouterr().out.partition("Test, last ten, by setting:")[2].partition("Own, last ten, by setting:")
    for text in (tables[0], tables[2]):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.strip().splitlines() if line.startswith("|")]
        assert rows[0] == ["strategy", "alpha 0.1", "alpha 1.0"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables[0].strip().splitlines() if "|" in line]
    assert rows[2:] == [["fedavg", "50.00", "75.00"], ["fedgen", "62.50", "87.50"], ["fedprox", "", "25.00"]]


def labels(tmp_path: Path) -> list[str]:
    return [one.label for one in group([read_run(folder) for folder in find_run_folders([tmp_path])])]


def test_labels(tmp_path: Path) -> None:
    """A label names the strategy and what else differs, and nothing that does not."""
    for seed in range(2):
        for strategy in ("fedgen", "fedavg"):
            write(tmp_path / f"{strategy}{seed}", strategy, seed, partition={"path": None})
    assert labels(tmp_path) == ["fedavg", "fedgen"]
    write(tmp_path / "half", "fedgen", alpha=1.0)
    assert labels(tmp_path) == ["fedavg, alpha 0.1", "fedgen, alpha 0.1", "fedgen, alpha 1.0"]
    write(tmp_path / "beta", "fedgen", knobs={"beta": 5.0})
    fedgen = ["fedgen, alpha 0.1, beta 5.0", "fedgen, alpha 0.1, no beta", "fedgen, alpha 1.0, no beta"]
    assert labels(tmp_path) == ["fedavg, alpha 0.1", *fedgen]


def test_labels_of_options(tmp_path: Path) -> None:
    """Where parts differ their options name them; a knob that two keys hold stands once; equal names are written out."""
    write(tmp_path / "a", "fedgen", optimizer={"local_steps": 20}, generator={"_target_": "g.Mlp", "width": 8})
    write(tmp_path / "b", "fedavg", local_steps=5, optimizer={"local_steps": 5})
    write(tmp_path / "c", "fedavg", local_steps=20, optimizer={"local_steps": 20})
    shards = write(tmp_path / "d", "fedavg", local_steps=20, optimizer={"local_steps": 20})
    config = OmegaConf.load(shards / "config.yaml")
    config.partition, config.choices.partition = {"_target_": "fedkd.partition.common.Shards", "per_client": 2}, "shards"
    OmegaConf.save(config, shards / "config.yaml")
    assert labels(tmp_path)[0].startswith("fedavg, dirichlet, local_steps 5")
    assert labels(tmp_path)[-1].startswith("fedavg, shards, local_steps 20") and "per_client" not in labels(tmp_path)[-1]
    assert all(label.count("local_steps") <= 1 and "width" not in label for label in labels(tmp_path))


def test_labels_write_equal_names_out(tmp_path: Path) -> None:
    for i, (mine, split) in enumerate([(1.0, 0.1), (2.0, 0.1), (1.0, 0.5), (2.0, 0.5)]):
        write(tmp_path / str(i), "fedgen", alpha=split, knobs={"alpha": mine})
    assert labels(tmp_path)[0] == "fedgen, partition.alpha 0.1, strategy.alpha 1.0"


def test_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each setting has its figures, a column wide at 300 dpi, with fonts that can be edited."""
    for alpha in (0.1, 1.0):
        for strategy in ("fedavg", "fedgen"):
            write(tmp_path / f"{strategy}{alpha}", strategy, alpha=alpha)
    assert main([str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    kinds = ("convergence", "convergence_by_bytes", "partition", "spread", "phases")
    stems = [f"{kind}_alpha-{alpha}" for kind in kinds for alpha in ("0.1", "1.0")]
    assert {path.name for path in (tmp_path / "out").glob("*_alpha*")} == {f"{stem}.{kind}" for stem in stems for kind in ("pdf", "png")}
    for stem in stems:
        pdf = (tmp_path / "out" / f"{stem}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"/CIDFontType2" in pdf and b"/Type3" not in pdf
        assert imread(tmp_path / "out" / f"{stem}.png").shape[1] == 1020
    assert (tmp_path / "out" / f"{stems[0]}.png").name in capsys.readouterr().out


def test_until_counts_a_run_as_if_it_had_ended_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "long", accuracy=[0.2, 0.4, 0.9])
    write(tmp_path / "short", "fedgen", accuracy=[0.5])
    assert main([str(tmp_path), "--until", "2", "--no-figures"]) == 0
    row = table(tmp_path).loc["fedavg"]
    assert (
        row["accuracy_last_mean"] == 0.4 and row["accuracy_last_ten_mean"] == pytest.approx(0.3) and row["uplink_bytes_total_mean"] == 2000
    )
    assert main([str(tmp_path), "--until", "1", "--no-figures"]) == 0 and list(table(tmp_path).index) == ["fedavg", "fedgen"]
    assert "--until must be a round of the run, 1..1, got 2" in capsys.readouterr().err


def test_until_cuts_unfinished_runs_too_and_needs_an_evaluated_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was interrupted after that round counts up to there; one that has not got as far does not."""
    for name, seed, done in (("whole", 0, 4), ("interrupted", 1, 3), ("begun", 2, 1)):
        folder = write(tmp_path / name, seed=seed, accuracy=[0.2, 0.4, 0.6, 0.8], every=2, finished=done == 4)
        (folder / "checkpoint.json").write_text(json.dumps({"round": done, "rounds": 4, "finished": done == 4}))
        pd.read_csv(folder / "metrics.csv")[:done].to_csv(folder / "metrics.csv", index=False)
    assert main([str(tmp_path), "--until", "2", "--no-figures"]) == 0
    assert table(tmp_path).loc["fedavg", ["seeds", "accuracy_last_mean"]].tolist() == ["0 1", 0.4]
    assert "begun: unfinished: 1 of 4 rounds" in capsys.readouterr().err
    assert main([str(tmp_path), "--until", "1", "--no-figures"]) == 2
    assert "nothing to report: no round was evaluated" in capsys.readouterr().err


def test_a_report_is_not_written_into_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "a")
    (folder / "clients.csv").write_text("kept")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main([str(folder), "--output", str(folder)]) == 2
    assert "--output must not be the folder of a run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_nothing_of_an_earlier_report_stays_beside_a_new_one(tmp_path: Path) -> None:
    """Figures and tables of a setting that is gone are gone; what somebody else has put there stays."""
    for alpha in (0.1, 1.0):
        write(tmp_path / f"a{alpha}", alpha=alpha)
    assert main([str(tmp_path)]) == 0
    report = tmp_path / "report"
    (report / "mine.txt").write_text("kept")
    assert (report / "convergence_alpha-1.0.png").exists() and (report / "by_setting.pdf").exists()
    for path in (tmp_path / "a1.0").iterdir():
        path.unlink()
    assert main([str(tmp_path)]) == 0
    assert not list(report.glob("*alpha-1.0*")) and not (report / "by_setting.pdf").exists()
    assert (report / "mine.txt").read_text() == "kept" and (report / "convergence.png").exists()


def test_missing_partition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run without its partition keeps its numbers; the missing figure is named."""
    (write(tmp_path / "a") / "partition.npz").write_bytes(b"PK\x03\x04broken")
    assert main([str(tmp_path)]) == 0
    assert "partition.npz" in capsys.readouterr().err and not list((tmp_path / "report").glob("partition*"))


def test_same_numbers_same_files(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "a")
    for name in ("one", "two"):
        assert main([str(tmp_path / "runs"), "--output", str(tmp_path / name)]) == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("counts", [np.zeros((2, 2), int), np.array([1, 2]), np.array([[1, -1]])])
def test_partition_wants_counts(tmp_path: Path, counts: np.ndarray) -> None:
    with pytest.raises(ValueError, match="counts must be"):
        convergence.partition(counts, tmp_path / "partition")


def test_partition_returns_its_paths(tmp_path: Path) -> None:
    assert convergence.partition(COUNTS, tmp_path / "alpha-0.1") == (tmp_path / "alpha-0.1.pdf", tmp_path / "alpha-0.1.png")


def test_paired_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Strategies are paired with FedAvg by seed, in the same setting, and only where both have the same seeds."""
    ours, base = (0.70, 0.72, 0.80), (0.60, 0.65, 0.69)
    for seed in range(3):
        write(tmp_path / f"avg{seed}", "fedavg", seed, [0.5, base[seed]])
        write(tmp_path / f"gen{seed}", "fedgen", seed, [0.5, ours[seed]])
        write(tmp_path / f"prox{seed}", "fedprox", seed + 1, [0.5, 0.9])
        write(tmp_path / f"other{seed}", "fedgen", seed, [0.5, 0.9], alpha=1.0)
    assert main([str(tmp_path), "--no-figures"]) == 0
    paired = pd.read_csv(tmp_path / "report" / "differences.csv")
    assert paired["strategy"].tolist() == ["fedgen, alpha 0.1"] and paired["less"].tolist() == ["fedavg, alpha 0.1"]
    gains = 100 * np.subtract(ours, base)
    assert paired["test, last"][0] == pytest.approx(gains.mean())
    assert paired["test, last: high"][0] - paired["test, last"][0] == pytest.approx(half_width(gains))
    said = capsys.readouterr()
    assert f"+{gains.mean():.2f} ± {half_width(gains):.2f}" in said.out
    assert "fedprox, alpha 0.1 (seeds 1 2 3): no run of fedavg has the same setting, training and seeds" in said.err
    assert "fedgen, alpha 1.0" in said.err


def timed(folder: Path, times: Sequence[float], **options: Any) -> None:
    """A run folder with a simulated clock."""
    write(folder, **options)
    table = pd.read_csv(folder / "metrics.csv")
    table.assign(simulated_seconds=times).to_csv(folder / "metrics.csv", index=False)


def times(text: str, strategy: str) -> list[str]:
    """The cells of a strategy in the table of simulated times, number of seeds left out."""
    lines = text.partition("simulated s")[2].splitlines()
    return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {strategy}")).split("|")[3:-1]]


def test_time_to_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All seeds reach it: a mean with its interval. Not all do: a bound, and how many do."""
    for seed, accuracy in enumerate(([0.1, 0.5, 0.8], [0.4, 0.2, 0.9], [0.3, 0.3, 0.5])):
        timed(tmp_path / f"avg{seed}", [10.0, 20.0, 30.0 + seed], strategy="fedavg", seed=seed, accuracy=accuracy)
        timed(tmp_path / f"gen{seed}", [1.0, 2.5, 4.0], strategy="fedgen", seed=seed, accuracy=[0.1, 0.5, 0.4] if seed else [0.5, 0.1, 0.4])
    assert main([str(tmp_path), "--no-figures"]) == 0
    text = capsys.readouterr().out
    assert times(text, "fedavg") == [f"31 ± {half_width([30, 31, 32]):.4g}"] and times(text, "fedgen") == ["4 ± 0"]
    assert main([str(tmp_path), "--target", "0.5", "--no-figures"]) == 0
    text, table_ = capsys.readouterr().out, table(tmp_path)
    reached = [20.0, 31.0, 32.0], [2, 3, 3]
    assert times(text, "fedavg")[1:] == [
        f"2.667 ± {half_width(reached[1]):.4g}",
        f"0.008 ± {half_width([0.006, 0.009, 0.009]):.4g}",
        f"27.67 ± {half_width(reached[0]):.4g}",
    ]
    row = table_.loc["fedgen"]
    assert row.num_reached == 3 and row.time_to_target_mean == 2 and row.time_to_target_min == 1 and row.rounds_to_target_max == 2
    assert main([str(tmp_path), "--target", "0.8", "--no-figures"]) == 0
    text, row = capsys.readouterr().out, table(tmp_path).loc["fedavg"]
    assert times(text, "fedavg")[1:] == ["> 3 (2 of 3)", "> 0.009 (2 of 3)", "> 31 (2 of 3)"]
    assert times(text, "fedgen")[1:] == ["> 3 (0 of 3)", "> 0.009 (0 of 3)", "> 4 (0 of 3)"]
    assert row.num_reached == 2 and np.isnan([row.time_to_target_mean, row.time_to_target_min, row.time_to_target_max]).all()
    assert main([str(tmp_path), "--target", "80"]) == 2 and "--target must be an accuracy in 0..1" in capsys.readouterr().err


def test_time_to_accuracy_on_own_labels_and_in_evaluated_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timed(tmp_path / "a", [1.0, 2.0, 3.0, 4.0], accuracy=[0.9, 0.4, 0.9, 0.5], every=2, global_model=False)
    assert main([str(tmp_path), "--target", "0.6", "--no-figures"]) == 0
    assert times(capsys.readouterr().out, "fedavg") == ["4", "4", "0.012", "4"]


def test_runs_made_before_there_was_a_clock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No table of times; with a target, the round is known all the same."""
    write(tmp_path / "a", accuracy=[0.1, 0.6, 0.7])
    assert main([str(tmp_path), "--no-figures"]) == 0 and "simulated s" not in capsys.readouterr().out
    assert main([str(tmp_path), "--target", "0.5", "--no-figures"]) == 0
    assert times(capsys.readouterr().out, "fedavg") == ["-", "2", "0.006", "-"]


def test_starts_fast() -> None:
    """The report needs none of the heavy packages."""
    code = "import sys, simulations.report; print({'torch', 'flwr', 'ray', 'simulations.run', 'matplotlib.pyplot'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
