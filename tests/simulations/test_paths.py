"""Paths with any characters mean themselves, and words that Hydra cannot read say how to quote."""

import pytest

from fedkd.errors import ConfigError
from simulations.config import compose, make_absolute
from simulations.distillation.runner import compose_distillation
from simulations.experiments.grid import expand
from simulations.overrides import with_quoted_path

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


def test_a_home_is_expanded_and_an_unknown_one_kept(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = compose(["partition=from_file", "partition.path=~/p.npz", "data=mnist", "data.root=~nobody_of_this_name/x"])
    make_absolute(config.partition), make_absolute(config.data)
    assert config.partition.path == "/home/me/p.npz" and config.data.root.endswith("/~nobody_of_this_name/x")
