"""Options and modules of the user's own: ``searchpath=`` and ``fedkd.yaml``."""

import sys
from pathlib import Path

import pytest

from fedkd.config.build import RUN_KEYS_WITHOUT_EFFECT, config_hash
from fedkd.errors import ConfigError
from simulations.config import compose
from simulations.distillation.runner import compose_distillation
from simulations.overrides import explain, nearest, options, search_path, with_search_path


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Path:
    """A folder with a strategy; ``sys.path`` is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "my lab"
    (folder / "conf/strategy").mkdir(parents=True)
    (folder / "conf/strategy/fedmine.yaml").write_text("# Mine.\ndefaults:\n  - fedavg\n  - _self_\n")
    (folder / "a_module_of_mine.py").write_text("VALUE = 3\n")
    return folder


def test_an_option_of_the_user_s_is_composed_and_recorded(lab):
    config = compose(["strategy=fedmine", "searchpath=my lab"])
    assert config.choices.strategy == "fedmine" and list(config.searchpath) == [str(lab)]
    assert config.strategy._target_ == "strategies.fedavg.FedAvg", "fedkd's options can be defaults of the user's"
    assert "searchpath" in RUN_KEYS_WITHOUT_EFFECT


def test_a_printed_name_is_recorded_and_is_no_part_of_the_strategy_or_a_hash(lab):
    plain = compose(["strategy=fedmine", "searchpath=my lab"])
    path = lab / "conf/strategy/fedmine.yaml"
    path.write_text(f"{path.read_text()}_label_: FedMine (ours)\n")
    named = compose(["strategy=fedmine", "searchpath=my lab"])
    assert dict(named.choices) == dict(plain.choices) | {"strategy_label": "FedMine (ours)"} and named.strategy == plain.strategy
    assert config_hash(named, {}) == config_hash(plain, {})
    other = compose(["strategy=fedmine", "searchpath=my lab", "strategy._target_=strategies.fedavg.FedAvg"])
    assert "strategy_label" not in other.choices, "another class is another strategy"
    assert compose(["strategy=fedavg", "+strategy._label_=Mine"]).choices.strategy_label == "Mine"
    assert compose_distillation(["+distiller._label_=Mine"]).choices.distiller_label == "Mine"
    for text in ("'=1+1'", "''", "'a\tb'", "[a]", "3"):
        with pytest.raises(ConfigError, match=r"^strategy\._label_ must be a text of one line"):
            compose(["strategy=fedavg", f"+strategy._label_={text}"])


def test_a_file_in_the_current_folder_names_the_folder(lab):
    Path("fedkd.yaml").write_text("searchpath: my lab\n")
    assert compose(["strategy=fedmine"]).choices.strategy == "fedmine" and "fedmine" in options("strategy")
    assert compose_distillation([]).searchpath == [str(lab)]
    with pytest.raises(ConfigError, match="got 'fedmine'"):
        compose(["strategy=fedmine", "searchpath=[]"])


def test_modules_come_last_on_the_path(lab):
    before = list(sys.path)
    compose([f"searchpath={lab}"])
    assert sys.path[: len(before)] == before and sys.path[len(before) :] == [str(lab.parent), str(lab)]
    import a_module_of_mine

    assert a_module_of_mine.VALUE == 3


def test_several_folders(lab):
    Path("other/conf/data").mkdir(parents=True)
    Path("other/conf/data/mine.yaml").write_text("# Mine.\n_target_: fedkd.data.digits.Digits\n")
    config = compose(["strategy=fedmine", "data=mine", "searchpath=[my lab,other]"])
    assert config.choices.data == config.name == "mine"
    assert [Path(folder).name for folder in config.searchpath] == ["my lab", "other"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("searchpth: x\n", "did you mean 'searchpath'"),
        ("- x\n", "must hold the key searchpath alone"),
        ("searchpath: {a: b}\n", "must be a folder or a list of folders"),
        ("searchpath: [a\n", "must be a YAML file"),
        ("searchpath: nowhere\n", "must be an existing folder"),
    ],
)
def test_a_wrong_file_is_refused(lab, content, message):
    Path("fedkd.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        search_path([])


def test_options_of_fedkd_s_names_and_unknown_groups_are_refused(lab):
    """Hydra would take fedkd's without a word."""
    (lab / "conf/strategy/fedavg.yaml").write_text("# Another.\n")
    with pytest.raises(ConfigError, match=r"got conf/strategy/fedavg\.yaml"):
        compose(["searchpath=my lab"])
    (lab / "conf/strategy/fedavg.yaml").unlink()
    (lab / "conf/stratgy").mkdir()
    (lab / "conf/stratgy/x.yaml").write_text("# X.\n")
    with pytest.raises(ConfigError, match="did you mean 'strategy'"):
        compose(["searchpath=my lab"])


def test_hydra_s_own_search_path_is_not_given_beside(lab):
    with pytest.raises(ConfigError, match=r"hydra\.searchpath must not be given"):
        with_search_path(["searchpath=my lab", "hydra.searchpath=[file:///x]"])


def test_a_class_that_replaces_an_option_s_gives_the_name():
    """The recipe without a yaml: the report must not call such runs fedavg."""
    config = compose(["strategy=fedavg", "strategy._target_=fedmax.FedMax", "+strategy.beta=0.1"])
    assert config.choices.strategy == "fedmax"
    assert compose(["strategy=fedavg"]).choices.strategy == "fedavg"


def test_nearest_names():
    assert nearest("fedgn", ["fedavg", "fedgen"]) == "; did you mean 'fedgen'?" and nearest("xyz", ["fedavg"]) == ""
    assert nearest("MNIST", ["emnist", "mnist"]) == "; did you mean 'mnist'?"
    assert nearest("resnet18", ["resnet8", "resnet18_imagenet"]) == "; did you mean 'resnet18_imagenet' or 'resnet8'?"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["strategy=fedavg", "strategy.mu=1"], "it is a key of strategy=coboosting, fedprox, moon"),
        (["engine=local", "engine.worker=2"], "did you mean 'engine.workers', a key of engine=ray?"),
        (
            ["partition=iid", "partition.alfa=1"],
            "did you mean 'partition.alpha', a key of partition=client_dirichlet, dirichlet, fedgen, niid_bench, quantity_skew, subsample?",
        ),
        (["optimizer.learning_rate=1"], "optimizer has the keys lr, momentum, weight_decay here"),
        (["partition=iid", "partition.xyz=1"], "partition has no keys here"),
        (["strategy.generator.hiden=1"], "did you mean 'strategy.generator.hidden'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_key_that_the_chosen_option_lacks_is_explained(words, hint):
    with pytest.raises(ConfigError) as caught:
        compose(words)
    assert str(caught.value).endswith(f"; {hint}")


def test_errors_of_hydra_that_have_no_pattern_stay_one_line():
    assert "\n" not in explain(ValueError("first\nsecond")) and explain(ValueError("first\nsecond")) == "first; second"
