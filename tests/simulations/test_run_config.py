"""The typed keys of flwr run: those of pyproject.toml are those that are read, and overrides win over them."""

import tomllib

import pytest
from omegaconf import OmegaConf

from simulations.config import compose
from simulations.overrides import RUN_CONFIG_KEYS, run_config_words
from tests.small_runs import ROOT

SHIPPED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]


def test_flwr_run_accepts_the_keys_that_are_read_and_ships_none_of_them_set():
    assert SHIPPED == dict.fromkeys([*RUN_CONFIG_KEYS, "overrides"], "")
    assert run_config_words(SHIPPED) == [] == run_config_words({})


def test_each_key_sets_a_key_of_a_run():
    config, choices = compose(["data=mnist"]), compose([]).choices
    assert [
        key for key in RUN_CONFIG_KEYS.values() if key not in choices and OmegaConf.select(config, key, default="no key") == "no key"
    ] == []


@pytest.mark.parametrize(
    ("run_config", "expected"),
    [
        ({"num-server-rounds": 7, "learning-rate": 0.5, "seed": 0}, {"rounds": 7, "optimizer.lr": 0.5, "seed": 0}),
        ({"strategy": "fedprox", "num-clients": 4, "clients-per-round": 2}, {"choices.strategy": "fedprox", "num_clients": 4}),
        ({"local-epochs": 2}, {"local_epochs": 2, "local_steps": None}),
        ({"local-steps": 3, "data": "mnist", "data-root": "/my data=1"}, {"local_steps": 3, "data.root": "/my data=1"}),
        ({"num-server-rounds": 7, "overrides": "rounds=9 batch_size=8"}, {"rounds": 9, "batch_size": 8}),
        ({"strategy": "fedprox", "overrides": "strategy=moon"}, {"choices.strategy": "moon"}),
        (
            {"strategy": "fedprox", "overrides": "~strategy +strategy._target_=flwr.serverapp.strategy.FedAvg"},
            {"strategy._target_": "flwr.serverapp.strategy.FedAvg"},
        ),
    ],
)
def test_overrides_win_over_typed_keys(run_config, expected):
    config = compose(run_config_words({**SHIPPED, **run_config}))
    assert {key: OmegaConf.select(config, key) for key in expected} == expected
