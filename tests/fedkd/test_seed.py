"""Seeds: random numbers depend on the path alone, and global generators are restored."""

import random

import numpy as np
import pytest
import torch

from fedkd.seed import Seed

PATHS = [("round", 1), ("round", 2), ("round", 1, "client", 7), ("round", 17), ("a", "b"), ("b", "a"), ("ab",), ()]


def seed_of(path, root=0):
    seed = Seed(root)
    for name in path:
        seed = seed / name
    return seed


def draws(seed):
    return torch.rand(3, generator=seed.torch()).tolist(), seed.numpy().random(3).tolist()


def test_random_numbers_depend_on_the_path_and_not_on_earlier_draws():
    forward = [draws(seed_of(path)) for path in PATHS]
    backward = [draws(seed_of(path)) for path in reversed(PATHS)]
    assert forward == backward[::-1]


@pytest.mark.parametrize("kind", [0, 1], ids=["torch", "numpy"])
def test_different_paths_and_roots_give_different_numbers(kind):
    drawn = [tuple(draws(seed_of(path, root))[kind]) for root in (0, 1, -1) for path in PATHS]
    assert len(set(drawn)) == len(drawn)


def test_a_number_and_its_text_are_the_same_path():
    assert Seed(0) / 3 == Seed(0) / "3"


def test_streams_do_not_change_between_versions():
    assert (Seed(0) / "round" / 1 / "client" / 7).integer() == 5711197320523680617  # head of the SHA-256 of "0/round/1/client/7"


@pytest.mark.parametrize("name", ["a/b", "/", "round/1"])
def test_a_slash_in_a_name_is_refused(name):
    with pytest.raises(ValueError, match="must not contain '/'"):
        Seed(0) / name


def globals_():
    return torch.random.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


@pytest.mark.parametrize("fails", [False, True])
def test_globally_seeds_and_restores_all_three_generators(fails):
    inside, before = [], globals_()
    for _ in range(2):
        try:
            with (Seed(3) / "model").globally():
                inside.append((torch.rand(2).tolist(), np.random.random(2).tolist(), random.random()))
                assert globals_() != before
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert globals_() == before
    assert inside[0] == inside[1]
    with (Seed(4) / "model").globally():
        assert torch.rand(2).tolist() != inside[0][0] and random.random() != inside[0][2]
