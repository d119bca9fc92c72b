"""Numbers in reports of distillations, compared with the run folders that they are computed from."""

import re
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import spearmanr

from simulations.distillation.folder import read_rows
from simulations.distillation.runner import compose_distillation, run_distillation
from simulations.report import main
from simulations.reports.distillation_groups import DistillationRun
from simulations.reports.tables.distillation import matching
from tests.simulations.distillation.small_distillations import final_accuracy, network_rows, small_distillation, small_federation


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """One output folder for all tests, so that equal teachers and baselines are trained once."""
    return tmp_path_factory.mktemp("output")


def cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table, without marks of the best values."""
    return [re.sub(r"\*\*|^_|_$", "", cell.strip()) for cell in line.strip().strip("|").split("|")]


def table_after(text: str, words: str) -> list[list[str]]:
    """The rows of the first Markdown table whose header holds ``words``."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|") and words in line)
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    return rows


def test_means_gains_and_costs_are_those_of_the_folders(output, tmp_path, capsys):
    runs = [("none", 0), ("none", 1), ("kd", 0), ("kd", 1), ("none", 2)]
    folders = [run_distillation(small_distillation(method, output, f"seed={seed}")) for method, seed in runs]
    capsys.readouterr()
    assert main([*map(str, folders), "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    accuracies = [final_accuracy(folder) for folder in folders]
    means = [100 * (accuracies[0] + accuracies[1] + accuracies[4]) / 3, 50 * (accuracies[2] + accuracies[3])]
    assert f"{means[0]:.2f} ±" in text and f"{means[1]:.2f} (" in text
    gains = [100 * (accuracies[2 + seed] - accuracies[seed]) for seed in (0, 1)]
    assert f"{sum(gains) / 2:+.2f} ({min(gains):+.2f} to {max(gains):+.2f})" in text, "over the seeds that both have"
    costs = table_after(text, "MACs")
    networks = network_rows(folders[2])
    teacher, student = ([f"{int(networks[name][key]):,}" for key in ("num_parameters", "num_macs")] for name in ("teacher", "student"))
    assert [row[1:3] for row in costs] == [teacher, student, student]
    assert [row[0].startswith("resnet14") for row in costs] == [True, False, True] and costs[0][0].endswith("teacher")
    assert [row[4].split()[0] for row in costs[1:]] == [f"{mean:.2f}" for mean in means]
    assert (tmp_path / "curves.pdf").exists() and (tmp_path / "report.html").exists()
    written = [cells(line) for line in (tmp_path / "distillation.md").read_text().splitlines() if "±" in line]
    assert written == [cells(line) for line in text.splitlines() if "±" in line]


def test_students_of_different_runs_are_not_averaged_but_those_of_runs_with_different_seeds_are(output, tmp_path, capsys):
    def distilled(run: Path, seed: int, method: str = "kd") -> Path:
        words = [f"teacher_run={run}", "student=mlp", "student.widths=[8]", f"distiller={method}", f"seed={seed}"]
        sizes = ["epochs=1", "steps_per_epoch=2", "progress=false", "export=false", f"output={output}"]
        return run_distillation(compose_distillation([*words, *sizes]))

    fedavg, other_seed = (small_federation(output, "strategy=fedavg", f"seed={seed}") for seed in (0, 1))
    fedprox = small_federation(output, "strategy=fedprox")
    fewer_steps = small_federation(output, "strategy=fedavg", "local_steps=2")
    folders = [distilled(fedavg, 0), distilled(other_seed, 1), distilled(fedprox, 0), distilled(fewer_steps, 0)]
    folders += [distilled(fedavg, 0, "none"), distilled(fedprox, 0, "none")]
    capsys.readouterr()
    assert main([*map(str, folders), "--no-figures", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    counts = {row[0]: row[1] for row in table_after(printed.out, "% of teacher")}
    assert sorted(counts.values()) == ["1", "1", "1", "2"]
    (name,) = (name for name, number in counts.items() if number == "2")
    assert "fedavg's" in name and "local_steps 3" in name
    assert any("fedprox's" in name for name in counts) and any("local_steps 2" in name for name in counts)
    assert f"{folders[-1]}: the same configuration and seed as {folders[-2]}, and the same accuracy" in printed.out + printed.err


def test_a_baseline_has_the_same_student_and_the_same_teacher():
    """Networks are the same if they have the same name and equally many parameters."""

    def distillation(method: str, student: int = 100, teacher: int = 900, name: str = "resnet14", **config) -> DistillationRun:
        rows = [] if method == "none" else [{"network": "teacher", "accuracy": 0.5, "num_parameters": teacher}]
        models = pd.DataFrame([*rows, {"network": "student", "accuracy": 0.4, "num_parameters": student}])
        choices = {"student": "resnet8", "teacher": name, "distiller": method, "image_source": "real"}
        node = {"teacher_run": None, "seed": 0, "choices": choices, **config}
        return DistillationRun(Path(), node, pd.DataFrame({"test_accuracy": [0.4]}), models)

    plain, kd = distillation("none", student_stem=16), distillation("kd")
    assert matching(kd, plain, "none") and matching(distillation("dpk"), kd, "kd") and not matching(kd, kd, "kd")
    assert not matching(distillation("kd", student=99), plain, "none") and not matching(distillation("kd", epochs=5), plain, "none")
    for other in (distillation("dpk", teacher=800), distillation("dpk", name="vgg13"), distillation("dpk", student=99)):
        assert not matching(other, kd, "kd")
    assert matching(distillation("dpk", teacher=800), plain, "none"), "any teacher"


def test_domains_that_are_left_out_have_a_column_each_and_their_mean(output, tmp_path, capsys):
    data = ("data=rotated_mnist", "data@data.data=digits", "data.angles=[0,30,60]", "data.examples=40", "num_train_images=null")
    folders = {
        (method, seed, domain): run_distillation(
            small_distillation(method, output, *data, f"seed={seed}", f"data.held_out={domain}", "epochs=1")
        )
        for method in ("none", "kd")
        for seed in (0, 1)
        for domain in (0, 2)
    }
    capsys.readouterr()
    assert main([*map(str, folders.values()), "--no-figures", "--output", str(tmp_path)]) == 0
    rows = table_after(capsys.readouterr().out, "domain 0")
    accuracy = {key: 100 * final_accuracy(folder) for key, folder in folders.items()}
    for (name, count, first, second, mean, gain, *_), method in zip(rows, ("none", "kd"), strict=True):
        assert count == "2" and ("resnet14" in name) == (method == "kd")
        means = [(accuracy[method, seed, 0] + accuracy[method, seed, 2]) / 2 for seed in (0, 1)]
        for cell, values in (
            (first, [accuracy[method, seed, 0] for seed in (0, 1)]),
            (second, [accuracy[method, seed, 2] for seed in (0, 1)]),
            (mean, means),
        ):
            assert cell == f"{sum(values) / 2:.2f} ({min(values):.2f} to {max(values):.2f})"
        plain = [(accuracy["none", seed, 0] + accuracy["none", seed, 2]) / 2 for seed in (0, 1)]
        assert gain.split("(")[0].strip() == ("-" if method == "none" else f"{(sum(means) - sum(plain)) / 2:+.2f}")


def test_students_of_three_teachers_are_drawn_with_their_rank_correlation(output, tmp_path, capsys):
    teachers = (["teacher=resnet8"], ["teacher=resnet14"], ["teacher=resnet14", "teacher.widths=[5,6,7]"])
    folders = [run_distillation(small_distillation("kd", output, *words)) for words in teachers]
    capsys.readouterr()
    assert main([*map(str, folders), "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    tables = [network_rows(folder) for folder in folders]
    pairs = [(float(table["teacher"]["accuracy"]), float(table["student"]["accuracy"])) for table in tables]
    assert [pair[1] for pair in pairs] == [float(read_rows(folder)[-1]["test_accuracy"]) for folder in folders]
    rho = spearmanr(*zip(*pairs)).statistic
    assert "resnet14 widths [5, 6, 7] > resnet8" in text
    ((name, count, correlation, _),) = table_after(text, "Spearman")
    assert name.startswith("resnet8, ") and (count, correlation) == ("3", f"{rho:+.2f}") and (tmp_path / "ladder.pdf").exists()
