"""Random configurations are valid or refused in one line, see :mod:`tests.fuzz`. ``python -m tests.fuzz 3000`` tries more."""

import random
from contextlib import suppress

import pytest

from fedkd.errors import ConfigError, DivergedError
from simulations.federation.runner import run_federation
from tests.fuzz import SMALL_RUN, VALUES, composed, configurations, main, options, outcome


def test_100_random_configurations_are_valid_or_refused_in_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(100, seed=17) == []
    assert not list(tmp_path.iterdir()), "nothing is written, and no target is called"


def test_the_draws_are_those_of_the_seed_and_differ():
    assert list(configurations(3, 20)) == list(configurations(3, 20)) != list(configurations(4, 20))
    assert {option.partition("=")[0] for option in options()} >= {"data", "partition", "strategy", "distiller", "model@student", "config"}


def test_a_fault_is_found(monkeypatch, tmp_path):
    """A build that raises anything but a line of ours is a fault."""

    def broken(config):
        raise KeyError("x")

    monkeypatch.setattr("tests.fuzz.prepare_run", broken)
    assert len(main(3, seed=1)) >= 1


def test_numbers_that_are_not_finite_are_refused_wherever_they_stand(tmp_path):
    rng = random.Random(0)
    keys = ["optimizer.lr", "optimizer.momentum", "timeout", "systems.deadline", "shift.noise", "validation_fraction"]
    for key in keys:
        value = rng.choice([value for value in VALUES if value in ("nan", "inf", "-inf")])
        with pytest.raises(ConfigError, match=rf"^{key.replace('.', '[.]')} must be a finite number, got -?(nan|inf)$"):
            raise ConfigError(outcome("config", [*SMALL_RUN, f"++{key}={value}"], tmp_path))


def test_valid_ones_of_the_draws_train(tmp_path):
    """A sample, one tiny round each. A huge learning rate may diverge, which is one line too."""
    found = (words for root, words in configurations(13, 300) if root == "config" and "strategy=fedavg" in words)
    kept = (words for words in found if not any(word.startswith(("++local", "++output")) for word in words))
    small = ["rounds=1", "local_steps=1", "local_epochs=null", "progress=false", f"output={tmp_path}"]
    trained = 0
    for words in (words for words in kept if outcome(root="config", words=words, output=tmp_path) == "valid"):
        with suppress(DivergedError):
            trained += (run_federation(composed("config", [*words, *small])) / "metrics.csv").is_file()
        if trained == 2:
            break
    assert trained == 2
