"""The page that shows kinds of heterogeneity side by side."""

import numpy as np
import pytest
from matplotlib.image import imread

from simulations.config import compose
from simulations.experiments.heterogeneity import SHIFTS, SPLITS, compare, group_strips, panel, phases, scene, strip, wrong_labels
from tests.small_runs import ROOT, small_simulation

TEN = ["num_clients=10"]


@pytest.fixture(scope="module")
def digits():
    return scene(TEN)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The files of the page."""
    return compare([*TEN, f"output={tmp_path_factory.mktemp('page')}"])


def test_the_page_is_drawn_again_to_the_same_bytes(page, tmp_path):
    pages = [page, compare([*TEN, f"output={tmp_path}"])]
    for left, right in zip(*pages):
        assert left.read_bytes() == right.read_bytes() and left.name == right.name
    assert [path.suffix for path in pages[0]] == [".pdf", ".png"] and imread(pages[0][1]).shape[1] == 2130


def test_what_is_given_makes_a_panel_and_a_strip_more(page, tmp_path):
    extended = compare([*TEN, "partition=iid", "shift.noise=0.3", "shift.rotation=20", f"output={tmp_path}"])
    assert imread(extended[1]).shape[0] > imread(page[1]).shape[0]


def test_images_of_each_domain_have_its_classes_in_turn(tmp_path):
    words = ["data=domains", "+data@data.domains.a=digits", "+data@data.domains.b=digits", "data.num_train=40", f"data.cache={tmp_path}"]
    of = scene([*TEN, *words, "data.channels=1", "data.mean=[0.5]", "data.std=[0.5]"])
    strips = group_strips(of)
    assert [strip.title for strip in strips] == ["a", "b"] and list(strips[0].texts[:4]) == list("0123")
    first = 40 + int(np.flatnonzero(of.train.y.numpy()[40:] == int(strips[1].texts[2]))[0])
    assert np.array_equal(strips[1].images[2][..., 0], of.train.x[first, 0].numpy() / np.float32(255))


def test_a_panel_shows_the_split_that_a_run_would_have(digits):
    shown = panel(digits, "mine", SPLITS["dirichlet 0.1"])
    simulation, _ = small_simulation(*TEN, "clients_per_round=10", *SPLITS["dirichlet 0.1"])
    held = [np.bincount(simulation.train.y[index], minlength=10) for index in simulation.partition.train]
    assert np.array_equal(shown.counts, held) and shown.note.startswith("d 0.")


def test_a_drift_has_a_panel_for_its_phases_as_a_run_has_them(digits):
    words = ["drift=class_incremental", "drift.num_tasks=7", "rounds=14", "partition.alpha=1.0"]
    shown = phases(digits, words)
    simulation, _ = small_simulation(*TEN, "clients_per_round=10", *words)
    assert [one.title for one in shown] == [f"task {task}, round {2 * task - 1}" for task in (1, 3, 4, 5, 7)]
    for one, server_round in zip(shown, (1, 5, 7, 9, 13)):
        held = [np.bincount(own.y, minlength=10) for own in simulation.at(server_round).client_data.train]
        assert np.array_equal(one.counts, held)


def test_strips_show_one_image_and_labels_that_are_framed_are_wrong(digits):
    for name in SHIFTS:
        drawn = strip(digits, name, [f"shift={name}"])
        assert len(drawn.images) == len(drawn.texts) == 11 and drawn.title.startswith(name)
        assert all(image.shape == (8, 8, 3) and 0 <= image.min() and image.max() <= 1 for image in drawn.images)
    assert drawn.wrong and all(drawn.texts[place] != "4" for place in drawn.wrong)
    assert all(text == "4" for place, text in enumerate(drawn.texts) if place and place not in drawn.wrong)
    table = wrong_labels(digits, ["shift=label_noise"]).counts
    assert (table.sum(axis=1) > 0).sum() == 4 and {place - 1 for place in drawn.wrong} <= set(np.flatnonzero(table.sum(axis=1)))


def test_every_split_and_shift_of_conf_is_shown():
    shown = {word.removeprefix("partition=") for setting in SPLITS.values() for word in setting if word.startswith("partition=")}
    assert shown == {path.stem for path in (ROOT / "conf" / "partition").glob("*.yaml")} - {"from_file", "flwr_datasets"}
    assert set(SHIFTS) == {path.stem for path in (ROOT / "conf" / "shift").glob("*.yaml")} - {"none"}


def test_fewer_clients_than_take_part_in_a_round_are_shown_too():
    """The page trains nobody."""
    assert compose([]).clients_per_round > 5
    assert panel(scene(["num_clients=5"]), "mine", SPLITS["iid"]).counts.shape == (5, 10)


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ValueError, match="num_clients"):
        compare(["num_clients=0", f"output={tmp_path}"])
    assert compose(["num_clients=10"]).output == "outputs" and not list(tmp_path.iterdir())
