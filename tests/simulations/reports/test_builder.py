"""Reports of run folders with known numbers: results, excluded runs, files and exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from matplotlib.text import Text

from fedkd.errors import ConfigError, RunFolderError
from simulations.report import main
from simulations.reports.builder import build_sections, report_folders
from simulations.reports.options import ReportOptions
from simulations.run_folder.reader import find_run_folders
from tests.simulations.reports.folders import half_width, results_of, write_run, write_state


def test_results_are_those_computed_by_hand_and_the_best_round_is_no_headline(tmp_path, capsys):
    for seed, last in enumerate((0.5, 0.6, 0.8)):
        write_run(tmp_path / f"r{seed}", seed=seed, accuracy=[0.1, 0.9] + [0.2] * 9 + [last])
    assert main([str(tmp_path)]) == 0
    row = results_of(tmp_path).loc["FedAvg"]
    assert (row.strategy, row.num_seeds, row.seeds, row.rounds, row.last_evaluated_round) == ("fedavg", 3, "0 1 2", 12, 12)
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
    assert f"63.33 ± {100 * half_width(last):.2f}" in text and "uplink MB" in text and "global acc., last 10" in text
    assert (tmp_path / "report" / "results.md").read_text(encoding="utf-8").replace("**", "").strip() in text


def test_every_file_of_a_report_is_listed_readable_by_others_and_not_empty(tmp_path, capsys):
    for seed in range(3):
        write_run(tmp_path / f"r{seed}", seed=seed, accuracy=[0.2, 0.9])
    assert main([str(tmp_path)]) == 0
    tables, drawn = ("headlines", "skew", "phases"), ("convergence", "convergence_by_bytes", "spread", "phases", "label_distribution")
    names = ["results.csv", "results.md", "curves.csv", "report.html", *(f"{name}.{kind}" for name in tables for kind in ("csv", "tex"))]
    names += [f"{name}.{kind}" for name in drawn for kind in ("pdf", "png")]
    report = tmp_path / "report"
    assert sorted((report / "written.txt").read_text().split()) == sorted(names)
    assert {path.name for path in report.iterdir()} == {*names, "written.txt"}
    assert all(path.stat().st_size > 0 for path in report.iterdir())
    assert len({path.stat().st_mode for path in report.iterdir()}) == 1, "one mode for all files"
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {report / 'report.html'}"


def test_only_evaluated_rounds_count_and_the_last_one_is_named(tmp_path):
    write_run(tmp_path / "a", accuracy=[r / 100 for r in range(1, 26)], every=2)
    assert main([str(tmp_path / "a"), "--no-figures"]) == 0, "a run folder itself"
    row = results_of(tmp_path).loc["FedAvg"]
    assert (row.last_evaluated_round, row.global_test_accuracy_final_mean) == (24, 0.24)
    assert row.global_test_accuracy_last10_mean == pytest.approx(np.mean([r / 100 for r in range(6, 25, 2)]))


def test_fewer_than_ten_evaluated_rounds_are_called_by_their_number(tmp_path, capsys):
    write_run(tmp_path / "a", accuracy=[0.2, 0.4, 0.6, 0.8, 0.9])
    assert main([str(tmp_path), "--no-figures"]) == 0
    text = capsys.readouterr().out
    assert "global acc., last 5" in text and "Last 5: mean of the last 5 evaluated rounds." in text and "last 10" not in text
    write_run(tmp_path / "b", accuracy=[0.5] * 7, alpha=1.0)
    assert main([str(tmp_path), "--no-figures"]) == 0
    assert "Last 7: mean of the last 7 evaluated rounds, or of all where there are fewer." in capsys.readouterr().out


def test_one_seed_has_no_interval(tmp_path, capsys):
    write_run(tmp_path / "a")
    assert main([str(tmp_path), "--no-figures"]) == 0
    assert np.isnan(results_of(tmp_path).loc["FedAvg"].global_test_accuracy_final_ci95)
    assert "60.00 |" in capsys.readouterr().out


def test_without_a_global_model_there_is_a_dash_and_no_zero(tmp_path, capsys):
    write_run(tmp_path / "a", global_model=False)
    assert main([str(tmp_path), "--no-figures"]) == 0
    row = results_of(tmp_path).loc["FedAvg"]
    assert np.isnan(row.global_test_accuracy_final_mean) and row.local_test_accuracy_final_mean == 0.7
    assert " - |" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- excluded runs
def test_excluded_runs_are_listed_with_the_reason_and_count_nowhere(tmp_path, capsys):
    for seed in range(2):
        write_run(tmp_path / f"good{seed}", seed=seed, accuracy=[0.5, 0.6])
    write_run(tmp_path / "unfinished", seed=2, finished=False)
    (write_run(tmp_path / "unstarted", seed=2) / "checkpoint.json").unlink()
    whole = (tmp_path / "good0/metrics.csv").read_text()
    broken = {
        "empty": "",
        "rowless": whole.splitlines()[0] + "\n",
        "columns": "round,global_test_accuracy\n1,0.5\n2,0.6\n",
        "words": whole.replace("0.5,", "oops,"),
        "percent": whole.replace("0.6,", "60.0,"),
    }
    for name, text in broken.items():
        (write_run(tmp_path / name, seed=3) / "metrics.csv").write_text(text)
    (write_run(tmp_path / "yaml", seed=6) / "config.yaml").write_text("a: [1\n")
    (write_run(tmp_path / "rounds", seed=4) / "metrics.csv").unlink()
    (write_run(tmp_path / "unknown", seed=4) / "config.yaml").unlink()
    write_run(tmp_path / "trial", seed=2, evaluation={"split": "validation"})
    write_run(tmp_path / "longer", seed=7, accuracy=[0.5, 0.6, 0.7])
    write_run(tmp_path / "seldom", seed=8, every=2)
    write_run(tmp_path / "judged", seed=8, evaluation={"local_test": "all_examples"})
    write_run(tmp_path / "twice", seed=1, accuracy=[0.5, 0.61])
    old = write_run(tmp_path / "old", seed=9)
    (old / "checkpoint.json").write_text('{"round": 2, "rounds": 2, "finished": true}')
    assert main([str(tmp_path), "--no-figures"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("excluded: ")]
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
        "old": "schema version",
    }.items():
        assert reason in notes.pop(name), name
    assert not notes
    assert results_of(tmp_path).seeds.tolist() == ["0 1"]


@pytest.mark.parametrize("case", ["nothing", "missing", "unfinished", "unwritable"])
def test_nothing_to_report_or_nowhere_to_write_is_an_error_in_one_line(tmp_path, case, capsys):
    runs = tmp_path / "runs"
    if case != "missing":
        runs.mkdir()
    if case in ("unfinished", "unwritable"):
        write_run(runs / "a", finished=case == "unwritable")
    (tmp_path / "file").touch()
    assert main([str(runs), "--output", str(tmp_path / "file" / "report")]) == 2
    message = {"nothing": "config.yaml and metrics.csv", "missing": "config.yaml and metrics.csv", "unfinished": "no finished run"}
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("excluded: ")]
    assert len(lines) == 1 and message.get(case, "output must be a folder") in lines[0]


def test_the_function_raises_what_the_command_prints(tmp_path, capsys):
    with pytest.raises(RunFolderError, match="config.yaml and metrics.csv"):
        report_folders([tmp_path])
    folder = write_run(tmp_path / "a")
    with pytest.raises(ConfigError, match="must not be the folder of a run"):
        report_folders([tmp_path], output=folder)
    assert report_folders([tmp_path], output=tmp_path / "here", quiet=True) == tmp_path / "here"
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "") and (tmp_path / "here" / "report.html").exists()


# --------------------------------------------------------------------------------------------------------------- until
def test_until_counts_a_run_as_if_it_had_ended_there(tmp_path, capsys):
    write_run(tmp_path / "long", accuracy=[0.2, 0.4, 0.9])
    write_run(tmp_path / "short", "fedgen", accuracy=[0.5])
    assert main([str(tmp_path), "--until", "2", "--no-figures"]) == 0
    row = results_of(tmp_path).loc["FedAvg"]
    assert row["global_test_accuracy_final_mean"] == 0.4 and row["global_test_accuracy_last10_mean"] == pytest.approx(0.3)
    assert row["uplink_bytes_total_mean"] == 2000
    assert main([str(tmp_path), "--until", "1", "--no-figures"]) == 0 and list(results_of(tmp_path).index) == ["FedAvg", "FedGen"]
    assert "until must be a round of the run, 1..1, got 2" in capsys.readouterr().err


def test_until_cuts_unfinished_runs_too_and_needs_an_evaluated_round(tmp_path, capsys):
    for name, seed, done in (("whole", 0, 4), ("interrupted", 1, 3), ("begun", 2, 1)):
        folder = write_run(tmp_path / name, seed=seed, accuracy=[0.2, 0.4, 0.6, 0.8], every=2)
        write_state(folder, done, 4)
        pd.read_csv(folder / "metrics.csv")[:done].to_csv(folder / "metrics.csv", index=False)
    assert main([str(tmp_path), "--until", "2", "--no-figures"]) == 0
    assert results_of(tmp_path).loc["FedAvg", ["seeds", "global_test_accuracy_final_mean"]].tolist() == ["0 1", 0.4]
    assert "begun: unfinished: 1 of 4 rounds" in capsys.readouterr().err
    assert main([str(tmp_path), "--until", "1", "--no-figures"]) == 2
    assert "nothing to report: no round was evaluated" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- files
def test_figures_of_each_setting_are_a_column_wide_with_editable_fonts_and_no_dots_in_their_names(tmp_path):
    for alpha in (0.1, 1.0):
        for strategy in ("fedavg", "fedgen"):
            write_run(tmp_path / f"{strategy}{alpha}", strategy, alpha=alpha)
    assert main([str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    kinds = ("convergence", "convergence_by_bytes", "label_distribution", "spread", "phases")
    stems = [f"{kind}_alpha_{alpha}" for kind in kinds for alpha in ("0_1", "1_0")]
    assert {path.name for path in (tmp_path / "out").glob("*_alpha*")} == {f"{stem}.{kind}" for stem in stems for kind in ("pdf", "png")}
    for stem in stems:
        pdf = (tmp_path / "out" / f"{stem}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"/CIDFontType2" in pdf and b"/Type3" not in pdf
        assert imread(tmp_path / "out" / f"{stem}.png").shape[1] == 1020


def test_a_report_is_not_written_into_a_run(tmp_path, capsys):
    folder = write_run(tmp_path / "a")
    (folder / "clients.csv").write_text("kept")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main([str(folder), "--output", str(folder)]) == 2
    assert "output must not be the folder of a run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_nothing_of_an_earlier_report_stays_beside_a_new_one_and_what_is_removed_is_named(tmp_path, capsys):
    for alpha in (0.1, 1.0):
        write_run(tmp_path / f"a{alpha}", alpha=alpha)
    assert main([str(tmp_path)]) == 0
    report = tmp_path / "report"
    (report / "mine.txt").write_text("kept")
    assert (report / "convergence_alpha_1_0.png").exists() and (report / "by_setting.pdf").exists()
    for path in (tmp_path / "a1.0").iterdir():
        path.unlink()
    assert "removed" not in capsys.readouterr().err
    assert main([str(tmp_path)]) == 0
    (gone,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("removed, of the earlier report in this folder: ")]
    assert "convergence_alpha_1_0.png" in gone and "by_setting.pdf" in gone and "mine.txt" not in gone and "results.csv" not in gone
    assert not list(report.glob("*alpha_1_0*")) and not (report / "by_setting.pdf").exists()
    assert (report / "mine.txt").read_text() == "kept" and (report / "convergence.png").exists()


def test_a_run_without_its_partition_keeps_its_numbers_and_the_missing_figure_is_named(tmp_path, capsys):
    (write_run(tmp_path / "a") / "partition.npz").write_bytes(b"PK\x03\x04broken")
    assert main([str(tmp_path)]) == 0
    assert "partition.npz" in capsys.readouterr().err and not list((tmp_path / "report").glob("label_distribution*"))


def test_equal_numbers_give_equal_files(tmp_path):
    write_run(tmp_path / "runs" / "a")
    for name in ("one", "two"):
        assert main([str(tmp_path / "runs"), "--output", str(tmp_path / name), "--formats", "pdf,png,svg"]) == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_the_report_needs_no_torch_flower_or_ray():
    heavy = {"torch", "flwr", "ray", "simulations.run", "matplotlib.pyplot"}
    code = f"import sys, simulations.reports.builder; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def diverge(folder: Path, message: str = "the server diverged in round 3: lower the learning rate") -> None:
    """Let a run folder record that its training diverged."""
    (folder / "diverged.json").write_text(json.dumps({"round": 3, "client": None, "loss": "nan", "message": message}))


def test_a_run_that_diverged_is_shown_as_such(tmp_path, capsys):
    for seed in range(3):
        write_run(tmp_path / f"r{seed}", seed=seed, accuracy=[0.2, 0.9])
    diverge(tmp_path / "r1", said := "client 3 diverged in round 1: lower the learning rate")
    assert main([str(tmp_path), "--no-figures"]) == 0
    assert results_of(tmp_path).loc["FedAvg"].seeds == "0 2" and f"diverged: {said}" in capsys.readouterr().err
    page = (tmp_path / "report" / "report.html").read_text()
    assert "1 of 3; lower their learning rate" in page and said in page


def test_every_row_says_how_many_of_its_seeds_diverged(tmp_path):
    runs = [("fedavg", seed, alpha) for seed in range(3) for alpha in (0.1, 1.0)] + [("fedgen", seed, 0.1) for seed in range(2)]
    for strategy, seed, alpha in runs:
        write_run(tmp_path / f"{strategy}{seed}_{alpha}", strategy, seed, [0.2, 0.9], alpha=alpha)
    for name in ("fedavg1_0.1", "fedgen0_0.1", "fedgen1_0.1"):
        diverge(tmp_path / name)
    output = tmp_path / "report"
    sections, _, _ = build_sections(find_run_folders([tmp_path]), output, ReportOptions())
    assert main([str(tmp_path), "--no-figures"]) == 0
    rows = {"FedAvg, alpha 0.1, 1 of 3 diverged": 2, "FedGen, alpha 0.1, 2 of 2 diverged": 0, "FedAvg, alpha 1.0": 3}
    table = pd.read_csv(output / "headlines.csv").set_index("strategy")
    means = table[[name for name in table if name != "n" and not name.endswith(": n")]]
    assert table["n"].to_dict() == rows and means.loc["FedGen, alpha 0.1, 2 of 2 diverged"].isna().all()
    for name in ("results.md", "report.html", "headlines.tex"):
        text = (output / name).read_text()
        assert all(row in text for row in rows) and "They are in no mean" in (text if name != "headlines.tex" else "They are in no mean")
    cells = pd.read_csv(output / "by_setting_global.csv").set_index("strategy")
    assert "(n = 2, 1 of 3 diverged)" in (output / "results.md").read_text() and cells.loc["FedGen", "alpha 0.1: n"] == 0
    numbers = results_of(tmp_path)
    assert numbers["num_diverged"].to_dict() == {"FedAvg, alpha 0.1": 1, "FedGen, alpha 0.1": 2, "FedAvg, alpha 1.0": 0}
    for drawing in sections[0].drawings:
        text = drawn_texts(drawing.figure())
        if drawing.name in ("figure convergence_alpha_0_1", "figure spread_alpha_0_1"):
            assert "FedAvg, 1 of 3 diverged" in text, drawing.name
        elif drawing.name == "figure by_setting":
            assert "FedAvg, 1 of 6 diverged" in text
        else:
            assert "diverged" not in text or "alpha_0_1" in drawing.name, drawing.name


def drawn_texts(figure) -> str:
    """All texts of a figure in one line."""
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).replace("\u00a0", " ").split())
