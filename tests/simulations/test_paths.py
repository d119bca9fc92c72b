"""Paths with any characters mean themselves, and words that Hydra cannot read say how to quote."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedkd.errors import ConfigError
from simulations.config import LOCATIONS, compose, make_absolute
from simulations.distillation.runner import compose_distillation
from simulations.experiments.grid import expand
from simulations.overrides import PATH_KEYS, with_quoted_path
from simulations.report import main
from tests.simulations.reports.folders import write_run

NAMES = [
    "with space", "ümläut-数据", "epoch=3-step=9", "a#b", "50%", "me@home", "a(b)", "a[b]", "a{b}", "a$b", "a'b", 'a"b', "-lead",
    "trailing ", "a:b", "a\\b", "[x", "~a",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["output", "+data.root", "tuned_params"])
def test_a_path_means_itself(name, key):
    value = f"/x/{name}/o "
    config = compose([f"{key}={value}"])
    assert {"output": config.output, "+data.root": config.data.get("root"), "tuned_params": config.tuned_params}[key] == value


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_and_a_distillation_read_the_same_paths(name):
    (words,) = expand([f"output=/x/{name}"])
    assert compose(words).output == f"/x/{name}"
    assert compose_distillation([f"teacher_run=/x/{name}"]).teacher_run == f"/x/{name}"


@pytest.mark.parametrize("value", ["1e3", "007", "true", "2024", "-1", "0x10"])
def test_a_path_that_reads_as_a_number_or_a_truth_value_stays(value):
    assert compose([f"output={value}", "partition=from_file", f"partition.path={value}"]).output == value


@pytest.mark.parametrize("word", ["output=a,b", "output='a b'", 'output="a=b"', "tuned_params=null", "rounds=3", "output=", "~partition"])
def test_other_words_are_not_changed(word):
    assert with_quoted_path(word) == word


@pytest.mark.parametrize(("word", "key"), [("name=a(b", "name"), ("name=ü=1", "name"), ("distill=a'b", "distill")])
def test_a_word_that_cannot_be_read_says_how_to_quote(word, key):
    value = word.partition("=")[2]
    with pytest.raises(ConfigError) as found:
        compose([word])
    assert str(found.value).startswith("a word must be KEY=VALUE") and str(found.value).endswith(f"""{key}='"{value}"'""")


def test_several_values_say_how_to_quote():
    with pytest.raises(ConfigError, match=r"""output must be one value, got 'a,b'.*output='"a,b"' is one text"""):
        compose(["output=a,b"])


WORDS = {
    "config": ("output", "tuned_params", "data.cache", "data.root", "partition.path", "systems.trace", "public_data.data.root"),
    "distill": ("output", "tuned_params", "teacher_run", "student_init", "+data.root", "+paths.partition.path"),
}
"""Keys that are paths, by the configuration that has them."""


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in WORDS.items() for key in keys])
@pytest.mark.parametrize("value", ["~/x y", "'~/x y'"])
def test_a_home_is_expanded_in_every_path(name, key, value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = [f"{key}={value}"]
    config = (
        compose(["data=mnist", "partition=from_file", "public_data=other_dataset", *words])
        if name == "config"
        else compose_distillation(words)
    )
    assert OmegaConf.select(config, key.lstrip("+")) == "/home/me/x y"


def test_every_key_of_a_path_is_tried():
    assert {key.rpartition(".")[2] for keys in WORDS.values() for key in keys} == set(PATH_KEYS) >= set(LOCATIONS)


def test_a_home_is_expanded_in_a_yaml_file_before_a_sweep_and_where_hydra_makes_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "lab" / "conf" / "data" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# Mine.\ndefaults: [mnist]\nroot: ~/data\n")
    for words in expand(["searchpath=~/lab", "data=mine", "seed=0,1", "output=~/out"]):
        config = compose(words)
        assert (config.data.root, config.output) == (f"{tmp_path}/data", f"{tmp_path}/out")
    assert with_quoted_path("output=~/out") == f"output='{tmp_path}/out'", "the folder of a sweep is Hydra's own"


def test_a_home_is_expanded_in_options_of_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path / "runs" / "a")
    assert main(["~/runs", "--no-figures", "--output=~/report"]) == 0 and (tmp_path / "report" / "results.csv").is_file()


def test_a_home_is_expanded_and_an_unknown_one_kept(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = compose(["partition=from_file", "partition.path=~/p.npz", "data=mnist", "data.root=~nobody_of_this_name/x"])
    make_absolute(config.partition), make_absolute(config.data)
    for words in (["output=~nobody_of_this_name"], ["output='~nobody_of_this_name'"]):
        assert Path(compose(words).output).expanduser().name == "~nobody_of_this_name"
    assert config.partition.path == "/home/me/p.npz" and config.data.root.endswith("/~nobody_of_this_name/x")
