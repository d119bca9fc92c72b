"""Run folders whose configuration lacks a key that came later in the same schema version."""

import shutil
from pathlib import Path

import pytest
import yaml

from fedkd.errors import RunFolderError
from simulations.config import compose
from simulations.distillation.runner import compose_distillation
from simulations.distillation.teachers import read_finished_config
from simulations.federation.trained_model import load_model
from simulations.overrides import CONF
from simulations.run_folder.reader import read_run
from simulations.run_folder.stored_config import configuration, load_stored, neutral_values, with_neutral_defaults
from tests.simulations.distillation.small_distillations import small_federation
from tests.small_runs import same_tensors


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run."""
    return small_federation(tmp_path_factory.mktemp("runs"), "strategy=fedgen", "rounds=1")


def without(run: Path, folder: Path, *keys: str) -> Path:
    """A copy of a run whose configuration lacks ``keys``."""
    copy = shutil.copytree(run, folder / run.parent.name / run.name)
    values = yaml.safe_load((copy / "config.yaml").read_text())
    for key in keys:
        *parts, last = key.split(".")
        node = values
        for part in parts:
            node = node[part]
        del node[last]
    (copy / "config.yaml").write_text(yaml.safe_dump(values))
    return copy


def neutral_keys(name: str) -> list[str]:
    return [key for key in neutral_values(CONF / name) if key != "defaults"]


def test_every_key_with_a_neutral_default_may_be_missing(run, tmp_path):
    copy = without(run, tmp_path, *neutral_keys("config.yaml"))
    assert load_stored(copy / "config.yaml") == {**load_stored(run / "config.yaml"), "searchpath": [], "allow_targets": []} | {
        key: value for key, value in neutral_values(CONF / "config.yaml").items() if key != "defaults"
    }
    assert same_tensors(load_model(copy).state_dict(), load_model(run).state_dict())
    assert read_run(copy).identity == read_run(run).identity
    assert read_finished_config(copy).max_update_norm is None


def test_a_key_without_a_neutral_default_is_named_in_one_line(run, tmp_path):
    copy = without(run, tmp_path, "precision", "timeout")
    for read in (load_model, read_finished_config):
        with pytest.raises(RunFolderError, match=r"must hold the keys precision, timeout; an earlier fedkd has written it: run it again$"):
            read(copy)


def test_parameters_of_parts_take_a_neutral_value_only_where_the_class_has_none(run, tmp_path):
    """What a user has removed keeps the default of the class."""
    values = configuration(run / "config.yaml")
    option = neutral_values(CONF / "strategy" / "fedgen.yaml")
    assert option, "the option has a neutral parameter"
    copy = without(run, tmp_path, *(f"strategy.{key}" for key in option))
    assert load_stored(copy / "config.yaml")["strategy"] == values["strategy"]


@pytest.mark.parametrize("config", [compose([]), compose_distillation([])], ids=["run", "distillation"])
def test_configurations_of_today_lack_nothing(config, tmp_path):
    from omegaconf import OmegaConf

    OmegaConf.save(config, tmp_path / "config.yaml", resolve=True)
    assert load_stored(tmp_path / "config.yaml") == OmegaConf.to_container(config, resolve=True)


def test_a_key_that_was_removed_is_left_out():
    assert "tensorboard" not in with_neutral_defaults({"strategy": {}, "tensorboard": True})
