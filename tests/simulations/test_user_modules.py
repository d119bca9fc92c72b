"""The modules that a command allows: named ones, those of the user's folders, and those of the working directory."""

import sys

import pytest
from omegaconf import OmegaConf

from fedkd.config.validation import check_run
from fedkd.errors import ConfigError
from simulations.config import compose
from simulations.distillation.teachers import read_finished_config
from simulations.user_modules import allowed_targets, trust
from tests.fedkd.config.test_targets import FORBIDDEN

SOURCE = "from strategies.fedavg import FedAvg\n\n\nclass Mine(FedAvg):\n    pass\n"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty working directory, and a folder beside it; ``sys.path`` is put back."""
    for name in ("work", "lab"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_module_of_the_working_directory_is_allowed_and_named(places, capsys):
    (places / "work/mine_of_work.py").write_text(SOURCE)
    config = compose(["strategy=fedavg", "strategy._target_=mine_of_work.Mine"])
    assert list(config.allow_targets) == ["mine_of_work"]
    assert capsys.readouterr().err == f"note: mine_of_work is a module of the working directory {places / 'work'}\n"
    check_run(config)


def test_a_module_of_the_search_path_is_allowed(places, capsys):
    (places / "lab/mine_of_lab.py").write_text(SOURCE)
    words = ["strategy=fedavg", "strategy._target_=mine_of_lab.Mine", f"searchpath={places / 'lab'}"]
    check_run(compose(words))
    assert capsys.readouterr().err == ""
    sys.modules.pop("mine_of_lab")


def test_installed_modules_are_allowed_by_name_alone():
    words = ["strategy=fedavg", "strategy._target_=sklearn.base.BaseEstimator"]
    with pytest.raises(ConfigError, match=r"^strategy\._target_ must be .*allow_targets=\[sklearn\]"):
        check_run(compose(words))
    config = compose([*words, "allow_targets=[sklearn]"])
    assert list(config.allow_targets) == ["sklearn"]


def test_modules_of_python_are_not_those_of_the_working_directory(places):
    (places / "work/os.py").write_text("")
    assert allowed_targets(OmegaConf.create({"data": {"_target_": "os.makedirs"}}), [], [places / "work"]) == []


def test_a_class_passed_as_an_object_is_trusted(monkeypatch):
    monkeypatch.setattr("simulations.user_modules._GIVEN", set())
    trust("somewhere.mine")
    config = OmegaConf.create({"model": {"_target_": "somewhere.mine.Net"}})
    assert allowed_targets(config, ["b"], []) == ["b", "somewhere.mine"]
    assert allowed_targets(OmegaConf.create({}), ["b"], []) == ["b"], "other configurations do not name it"


@pytest.mark.parametrize("path", FORBIDDEN[:4])
def test_a_run_refuses_other_code(path):
    with pytest.raises(ConfigError, match=r"^data\._target_"):
        check_run(compose(["~data", f"+data._target_={path}"]))


def test_a_foreign_run_folder_names_no_code(places, monkeypatch):
    """Neither its own list nor its own folders count, but those of the command do."""
    monkeypatch.setattr("simulations.distillation.teachers.read_header", lambda folder: {"round": 1, "rounds": 1, "finished": True})
    (places / "lab/mine_of_another.py").write_text(SOURCE)
    config = compose(["strategy=fedavg", f"searchpath={places / 'lab'}", "strategy._target_=mine_of_another.Mine"])
    folder = places / "foreign"
    folder.mkdir()
    OmegaConf.save(OmegaConf.masked_copy(config, [key for key in config if key != "name"]), folder / "config.yaml")
    found = read_finished_config(folder)
    assert list(found.allow_targets) == list(found.searchpath) == []
    assert list(read_finished_config(folder, None, config).allow_targets) == ["mine_of_another"]
