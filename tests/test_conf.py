"""conf/: every yaml builds, its keys are those of its signature, and its first line says what it is."""

import inspect
from functools import cache
from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from fedkd.config.build import build
from fedkd.config.validation import check_distillation, check_part, check_run
from simulations.config import compose
from simulations.distillation.runner import compose_distillation
from tests.composition import compose_each_time, remember_compositions
from tests.small_runs import ROOT

PLACES = {
    "data": "data", "partition": "partition", "model": "model", "optimizer": "optimizer", "strategy": "strategy", "engine": "engine",
    "aggregator": "aggregator", "server_optimizer": "server_optimizer",
    "generator": "strategy.generator", "shift": "shift", "drift": "drift", "systems": "systems", "public_data": "public_data",
    "distiller": "distiller", "image_source": "image_source", "augmentation": "augmentation",
}  # fmt: skip
"""By group: where its options stand in a composed configuration."""

WITHOUT_TARGET = {"protocol", "evaluation", "experiment", "recipe", "report", "tracker"}
"""Groups whose options are values, or several objects by name."""

YAMLS = [(group, path) for group in PLACES for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]
OPTIONAL = {"flwr_datasets"}
"""Options that need a package of the same name that need not be installed."""
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def ident(value: object) -> str | None:
    return value.stem if isinstance(value, Path) else None


@cache
def composed(group: str, path: Path):
    """The configuration that chooses this file, its node, and where the node is."""
    place = PLACES[group]
    if place in ("distiller", "image_source", "augmentation"):
        config = compose_distillation([f"{group}={path.stem}"])
        return config, OmegaConf.to_container(config[place], resolve=True), place
    images = group == "generator" and path.stem.startswith("image")
    config = compose(
        ["strategy=fedftg" if images else "strategy=fedgen", f"{group}={path.stem}" if place == group else f"{group}@{place}={path.stem}"]
    )
    return config, OmegaConf.to_container(OmegaConf.select(config, place), resolve=True), place


@pytest.mark.parametrize(("group", "path"), YAMLS, ids=ident)
def test_an_option_resolves_type_checks_and_builds(group, path):
    if path.stem in OPTIONAL:
        pytest.importorskip(path.stem)
    config, node, place = composed(group, path)
    check_part(node, place)
    (check_distillation if "distiller" in config else check_run)(config)
    assert build(config, place.partition(".")[0]) is not None


@pytest.mark.parametrize(("group", "path"), YAMLS, ids=ident)
def test_an_option_s_keys_are_the_keywords_of_its_signature_which_holds_no_defaults(group, path):
    _, node, _ = composed(group, path)
    target, keys = get_object(node["_target_"]), set(node) - {"_target_", "_partial_"}
    parameters = inspect.signature(target).parameters
    if not target.__module__.startswith(("fedkd.", "strategies.", "simulations.")):
        assert keys <= set(parameters)
        return
    own = {name: parameter for name, parameter in parameters.items() if parameter.kind == parameter.KEYWORD_ONLY}
    assert keys == set(own)
    assert [name for name, parameter in own.items() if parameter.default is not parameter.empty] == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes(name):
    check_run(compose([f"experiment={name}"]))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml")))
def test_a_recipe_composes(name):
    check_distillation(compose_distillation([f"recipe={name}"]))


def test_every_folder_of_conf_is_enumerated_here():
    folders = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert folders <= {*PLACES, *WITHOUT_TARGET} and folders >= set(PLACES)


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: str(path.relative_to(ROOT / "conf")))
def test_the_first_line_of_an_option_says_what_it_is(path):
    """One sentence, which ``fedkd describe`` prints."""
    lines = path.read_text(encoding="utf-8").splitlines()
    sentence = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert sentence.startswith("# ") and sentence.endswith(".") and 10 < len(sentence) <= 140, sentence


@pytest.mark.parametrize("path", [path for group, path in YAMLS if group == "strategy"], ids=ident)
def test_a_strategy_s_docstring_says_what_it_computes_and_what_deviates(path):
    _, node, _ = composed("strategy", path)
    document = inspect.getdoc(get_object(node["_target_"]))
    assert document is not None and "Deviations" in document


def test_a_remembered_composition_is_that_of_hydra():
    """The tests compose each choice of options once, with other values of single keys each time."""
    given = [
        ["strategy=fedgen", f"rounds={rounds}", *words]
        for rounds in (3, 4)
        for words in ([], ["+strategy.note=x"], ["strategy=feddf", "public_data=held_out"], ["partition=dirichlet", "partition.alpha=0.3"])
    ]
    remembered = [OmegaConf.to_yaml(compose(words)) for words in given]
    compose_each_time()
    assert [OmegaConf.to_yaml(compose(words)) for words in given] == remembered
    remember_compositions()
