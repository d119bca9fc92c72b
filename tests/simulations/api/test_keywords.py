"""Keyword arguments as words of the command."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAdam
from hydra.core.override_parser.overrides_parser import OverridesParser

import fedkd
from simulations.api.keywords import combinations, single, text
from simulations.config import compose
from strategies.fedgen import FedGen

VALUES = [
    0, -1, 0.1, 1e-05, 1e20, True, False, None, "fedgen", "a b", "a,b", "it's", 'say "no"', "a=b", "{x}", "[x]",
    "back\\slash", "end\\", "\\'", "", "null ", "ü", "a:b/c.d-e+f", "~x", (8, 16), (), ("a b", None, 1.5), {"a": 1, "b.c": "d,e"},
    ((1, 2), (3,)),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_reaches_the_configuration_as_it_is(value):
    (parsed,) = OverridesParser.create().parse_overrides([f"key={text(value)}"])
    plain = parsed.value()
    plain = getattr(plain, "text", plain)  # a quoted text

    def lists(one):
        if isinstance(one, list | tuple):
            return [lists(item) for item in one]
        if isinstance(one, dict):
            return {str(getattr(key, "text", key)): lists(item) for key, item in one.items()}
        return getattr(one, "text", one)

    assert lists(plain) == lists(value)


def test_numpy_numbers_and_paths_are_values():
    assert [text(np.float64(0.5)), text(np.int64(3)), text(np.array([1, 2])), text(Path("a/b"))] == ["0.5", "3", "[1,2]", "a/b"]
    with pytest.raises(fedkd.ConfigError, match="model.x must be a number, .*, got <object"):
        combinations([], {"model__x": object()})


def test_a_list_is_swept_and_a_tuple_is_one_value():
    found = combinations(["rounds=1,2", "a=b"], {"partition__alpha": [0.1, 1], "model__widths": (8, 16)})
    assert found == [
        ["rounds=1", "a=b", "partition.alpha=0.1", "model.widths=[8,16]"],
        ["rounds=1", "a=b", "partition.alpha=1", "model.widths=[8,16]"],
        ["rounds=2", "a=b", "partition.alpha=0.1", "model.widths=[8,16]"],
        ["rounds=2", "a=b", "partition.alpha=1", "model.widths=[8,16]"],
    ]
    assert single(["a=b"], {"seed": [3], "widths": (1, 2)}) == ["a=b", "seed=3", "widths=[1,2]"]
    with pytest.raises(fedkd.ConfigError, match=r"seed must be one value here .*, got \[0, 1\]"):
        single([], {"seed": [0, 1]})
    with pytest.raises(fedkd.ConfigError, match=r"seed must hold one value at least .*, got \[\]"):
        combinations([], {"seed": []})
    with pytest.raises(fedkd.ConfigError, match="overrides must be words KEY=VALUE, got 3"):
        combinations([3], {})  # type: ignore[list-item]


@dataclass(kw_only=True)
class Sharper(FedGen):
    """FedGen with a number of its own."""

    sharpness: float = 1.0


@dataclass(kw_only=True)
class Plain(fedkd.Strategy):
    """A strategy without an option among its bases."""

    beta: float


def test_a_class_inherits_the_values_of_its_nearest_option():
    words = single([], {"strategy": Sharper, "strategy__sharpness": 2.0, "strategy__alpha": 3.0})
    config = compose(words)
    assert config.strategy._target_ == f"{__name__}.Sharper"
    assert (config.strategy.sharpness, config.strategy.alpha, config.strategy.beta) == (2.0, 3.0, 10.0)
    assert config.choices.strategy == "sharper"
    plain = compose(single([], {"strategy": Plain, "strategy__beta": 1}))
    assert set(plain.strategy) == {"_target_", "beta", *compose(["strategy=fedavg"]).strategy}


def test_a_class_of_flower_brings_its_values_itself():
    config = compose(single([], {"strategy": FedAdam, "strategy__fraction_evaluate": 0.0}))
    assert dict(config.strategy) == {"_target_": "flwr.serverapp.strategy.fedadam.FedAdam", "fraction_evaluate": 0.0}


def test_a_class_inside_a_function_is_refused():
    class Inner(FedGen):
        """Nobody else can import it."""

    with pytest.raises(fedkd.ConfigError, match="strategy must be a class at the top of a module or of the notebook, got '.*Inner'"):
        single([], {"strategy": Inner})
