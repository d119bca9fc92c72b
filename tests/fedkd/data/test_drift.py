"""Drifts: which client has which view in which round."""

import numpy as np
import pytest

from fedkd.data.drift import ClassIncremental, GradualDrift, RecurringDrift, StaggeredDrift, SuddenDrift
from fedkd.errors import ConfigError
from fedkd.seed import Seed

WHAT = {"partition": "redraw", "shift": "constant", "swapped_client_fraction": 0.5}
SEED = Seed(3) / "drift"


def views(drift, rounds: int = 12, num_clients: int = 5) -> np.ndarray:  # [rounds, K]
    """The view of each client in each round, from the phases."""
    phases = drift.phases(rounds, num_clients, range(10), SEED)
    assert phases[0].first_round == 1
    assert all(one.views != two.views and one.first_round < two.first_round for one, two in zip(phases, phases[1:]))
    return np.array([[one for one in phases if one.first_round <= number][-1].views for number in range(1, rounds + 1)])


def test_kinds_of_drift_by_their_definitions():
    assert (views(SuddenDrift(round=None, **WHAT)).T == [0] * 6 + [1] * 6).all()
    assert (views(SuddenDrift(round=4, **WHAT)).T == [0] * 3 + [1] * 9).all()
    assert (views(RecurringDrift(period=5, **WHAT)).T == [0] * 5 + [1] * 5 + [0] * 2).all()
    staggered = views(StaggeredDrift(round=3, duration=5, **WHAT))
    assert staggered.sum(1).tolist() == [0, 0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5] and (np.diff(staggered, axis=0) >= 0).all()
    gradual = views(GradualDrift(round=3, duration=3, **WHAT), 8, 4000)
    np.testing.assert_allclose(gradual.mean(1), [0, 0, 0.25, 0.5, 0.75, 1, 1, 1], atol=0.03)
    assert 0 < (gradual[2] & ~gradual[3]).mean(), "a client draws anew in each round"


def test_renamed_classes_keep_no_name_and_absent_ones_keep_theirs():
    drift = SuddenDrift(round=2, **WHAT)
    names = drift.permutation([1, 2, 4, 5], 6, SEED)
    assert sorted(names) == list(range(6)) and names[[0, 3]].tolist() == [0, 3] and (names[[1, 2, 4, 5]] != [1, 2, 4, 5]).all()
    assert len(drift.swapped_clients(5, SEED)) == 3


def test_tasks_divide_the_classes_and_their_order_has_its_own_seed():
    orders = [[phase.task for phase in ClassIncremental(num_tasks=3, order_seed=own).phases(10, 2, range(7), seed)]
              for own, seed in ((None, SEED), (5, SEED), (5, Seed(8) / "drift"), (None, Seed(8) / "drift"))]  # fmt: skip
    assert all(sorted(sum(tasks, ())) == list(range(7)) and [len(task) for task in tasks] == [3, 2, 2] for tasks in orders)
    assert orders[1] == orders[2] and len({str(tasks) for tasks in orders}) == 3
    assert [phase.first_round for phase in ClassIncremental(num_tasks=3, order_seed=None).phases(10, 2, range(7), SEED)] == [1, 4, 7]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: GradualDrift(round=2, duration=0, **WHAT), "duration"),
        (lambda: StaggeredDrift(round=2, duration=0, **WHAT), "duration"),
        (lambda: RecurringDrift(period=0, **WHAT), "period"),
        (lambda: views(RecurringDrift(period=12, **WHAT)), "period"),
        (lambda: views(StaggeredDrift(round=13, duration=1, **WHAT)), "round"),
        (lambda: SuddenDrift(round=2, **{**WHAT, "swapped_client_fraction": 1.5}), "swapped_client_fraction"),
        (lambda: SuddenDrift(round=2, **{**WHAT, "shift": "later"}), "shift"),
        (lambda: views(RecurringDrift(period=1, **WHAT), 2**31), "period"),
        (lambda: views(GradualDrift(round=2, duration=2**31, **WHAT), 2**31), "duration"),
        (lambda: ClassIncremental(num_tasks=1, order_seed=None), "num_tasks"),
    ],
)
def test_what_does_not_fit_is_refused(make, key):
    with pytest.raises(ConfigError, match=f"^{key} must"):
        make()
