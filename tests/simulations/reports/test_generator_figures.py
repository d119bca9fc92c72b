"""Figures of the server's generator: their numbers are those of the files, and files that cannot be read are named."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import imread

from simulations.report import main
from simulations.reports.figures import generator
from simulations.reports.figures.style import DPI, WIDTH, FigureStyle
from simulations.reports.groups import gather, group
from simulations.run_folder.metric_names import GENERATOR_COLUMNS
from simulations.run_folder.reader import SETTING, find_run_folders, read_run
from tests.simulations.reports.folders import write_generator_run, write_run

FIGURES = ("generator_fidelity", "generator_diversity", "generator_latents")


def pixels(folder: Path, name: str) -> np.ndarray:
    """A figure, as wide as a column; its PDF is there too."""
    assert (folder / "report" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    image = imread(folder / "report" / f"{name}.png")[..., :3]
    assert image.shape[1] == round(WIDTH * DPI) and image.min() < 0.5
    return image


def test_numbers_are_means_over_seeds(tmp_path):
    tables = [write_generator_run(tmp_path / f"r{seed}", seed) for seed in range(3)]
    assert main([str(tmp_path)]) == 0
    found = pd.read_csv(tmp_path / "report" / "generator.csv")
    assert found["label"].unique().tolist() == ["FedGen"] and found["num_seeds"].unique().tolist() == [3]
    for name in GENERATOR_COLUMNS:
        assert found[name].to_numpy() == pytest.approx(np.mean([one[name] for one in tables], axis=0), nan_ok=True), name
    for name in FIGURES:
        pixels(tmp_path, name)


def test_seeds_without_a_label_accuracy_are_not_counted(tmp_path):
    """A class that every client of a round has, or none, has no such label accuracy in a seed: the mean of the others, and their number."""
    tables = [write_generator_run(tmp_path / f"r{seed}", seed) for seed in range(3)]
    for seed in (1, 2):
        tables[seed].loc[tables[seed]["class"] == 1, "label_accuracy_clients_with_class"] = np.nan
        tables[seed].to_csv(tmp_path / f"r{seed}" / "generator.csv", index=False)
    assert main([str(tmp_path)]) == 0
    found = pd.read_csv(tmp_path / "report" / "generator.csv")
    assert (
        found["label_accuracy_clients_with_class_seeds"].tolist() == [3, 1, 3] * 4
        and found["label_accuracy_global_model_seeds"].tolist() == [3] * 12
    )
    assert found["label_accuracy_clients_with_class"][1] == pytest.approx(tables[0]["label_accuracy_clients_with_class"][1])


def test_many_generators_have_their_losses_in_several_figures(tmp_path):
    for number in range(9):
        folder = write_run(tmp_path / str(number), strategy="fedgen", parameters={"eta": float(number)})
        pd.read_csv(folder / "metrics.csv").assign(generator_loss=1.0, train_generated_loss=2.0).to_csv(folder / "metrics.csv", index=False)
    drawn(tmp_path, "server_losses_1", "server_losses_2")


def drawn(folder: Path, *names: str) -> list[str]:
    """The figures of what is in ``folder``, these alone; notes."""
    groups = group([read_run(one) for one in find_run_folders([folder])])
    settings = gather(groups, lambda one: one.runs[0].part(SETTING))
    (folder / "report").mkdir(exist_ok=True)
    drawings, _, notes = generator.planned(settings, folder / "report", FigureStyle(formats=("pdf", "png")))
    assert {path.stem for one in drawings for path in one.write() if path.suffix == ".png"} == set(names)
    return notes


def test_a_heat_map_holds_the_table_classes_down_and_rounds_across():
    table = pd.DataFrame({"round": [4, 2, 4, 2], "class": [0, 1, 1, 0], "x": [np.nan, 0.2, 0.4, 0.1]})
    shown = generator.heat_map(Figure().subplots(), table, table["x"], "x", Normalize(0, 1)).get_array()
    np.testing.assert_array_equal(shown.filled(-1), [[0.1, -1], [0.2, 0.4]])


def test_rounds_that_not_all_seeds_have_are_left_out(tmp_path):
    write_generator_run(tmp_path / "a", 0), write_generator_run(tmp_path / "b", 1, every=2)
    drawn(tmp_path, *FIGURES)
    assert main([str(tmp_path)]) == 0
    assert pd.read_csv(tmp_path / "report" / "generator.csv")["round"].unique().tolist() == [2, 4]


def test_until(tmp_path):
    write_generator_run(tmp_path / "a")
    assert main([str(tmp_path), "--until", "2"]) == 0
    assert pd.read_csv(tmp_path / "report" / "generator.csv")["round"].max() == 2


def test_runs_without_a_generator_have_no_such_figures(tmp_path):
    write_generator_run(tmp_path / "run")
    assert main([str(tmp_path), "--no-figures"]) == 0 and main([str(tmp_path)]) == 0 and (tmp_path / "report" / "generator.csv").exists()
    for path in ("generator", "latents"):
        (tmp_path / "run" / f"{path}.csv").unlink()
    assert drawn(tmp_path) == [] and main([str(tmp_path), "--no-figures"]) == 0 and not (tmp_path / "report" / "generator.csv").exists()


def test_settings_and_strategies_have_figures_of_their_own(tmp_path):
    for alpha, eta in ((0.1, 0.0), (0.1, 1.0), (1.0, 1.0)):
        write_generator_run(tmp_path / f"{alpha}-{eta}", alpha=alpha, parameters={"eta": eta})
        (tmp_path / f"{alpha}-{eta}" / "latents.csv").unlink()
    suffixes = ("alpha_0_1_FedGen_eta_0_0", "alpha_0_1_FedGen_eta_1_0", "alpha_1_0")
    assert drawn(tmp_path, *(f"{name}_{suffix}" for name in FIGURES[:2] for suffix in suffixes)) == [] and main([str(tmp_path)]) == 0
    assert len(pd.read_csv(tmp_path / "report" / "generator.csv")["label"].unique()) == 3


@pytest.mark.parametrize("text", ["", "round,class\n1,0\n", 'round,"', "\x00\x01", "words"])
def test_files_that_cannot_be_read_are_named_and_not_drawn(tmp_path, text):
    write_generator_run(tmp_path / "a")
    for name in ("generator", "latents"):
        path = tmp_path / "a" / f"{name}.csv"
        frame = pd.read_csv(path).astype({"class": object})
        frame.loc[0, "class"] = "two"
        path.write_text(frame.to_csv(index=False) if text == "words" else text)
    notes = drawn(tmp_path)
    assert [f"{name}.csv must be a table of numbers" in note for name, note in zip(("generator", "latents"), notes, strict=False)] == (
        [True, True] if text else []
    )


def test_one_file_is_drawn_without_the_other(tmp_path):
    for name in ("generator", "latents"):
        write_generator_run(tmp_path / name / "a")
        (tmp_path / name / "a" / f"{name}.csv").write_text("round,\n1,")
    assert len(drawn(tmp_path / "generator", "generator_latents")) == 1
    assert len(drawn(tmp_path / "latents", *FIGURES[:2])) == 1


def test_a_collapsed_generator_and_classes_that_every_client_has(tmp_path):
    """Without a ratio, coverage or clients without a class, the rest is drawn."""
    table = write_generator_run(tmp_path / "a").assign(
        pairwise_distance_generated=0.0, coverage=np.nan, label_accuracy_clients_without_class=np.nan
    )
    table.to_csv(tmp_path / "a" / "generator.csv", index=False)
    assert drawn(tmp_path, *FIGURES) == []


def test_many_classes(tmp_path):
    write_generator_run(tmp_path / "a", classes=100, every=4)
    assert drawn(tmp_path, *FIGURES) == []
    assert all(pixels(tmp_path, name).shape[0] < 8 * DPI for name in FIGURES[1:])


def test_losses_and_accuracies_of_the_server(tmp_path):
    """One more loss is one more panel; strategies without such columns are not drawn."""
    for name, columns in (
        ("fedftg", {"generator_loss": 1.0, "global_test_accuracy_before_distillation": 0.4}),
        ("fedgen", {"generator_loss": 2.0}),
    ):
        for seed in range(2):
            folder = tmp_path / f"{name}{seed}"
            write_run(folder, strategy=name, seed=seed)
            table = pd.read_csv(folder / "metrics.csv")
            table.assign(distillation_steps=5.0, **columns).to_csv(folder / "metrics.csv", index=False)
    write_run(tmp_path / "plain0", seed=0), write_run(tmp_path / "plain1", seed=1)
    drawn(tmp_path, "server_losses", "server_accuracy")
    before = {name: pixels(tmp_path, name) for name in ("server_losses", "server_accuracy")}
    for seed in range(2):
        folder = tmp_path / f"fedftg{seed}"
        pd.read_csv(folder / "metrics.csv").assign(ensemble_test_accuracy=0.9, generator_discrepancy=3.0).to_csv(
            folder / "metrics.csv", index=False
        )
    drawn(tmp_path, "server_losses", "server_accuracy")
    assert pixels(tmp_path, "server_losses").shape[0] > before["server_losses"].shape[0], "a panel more"
    assert not np.array_equal(pixels(tmp_path, "server_accuracy"), before["server_accuracy"])
