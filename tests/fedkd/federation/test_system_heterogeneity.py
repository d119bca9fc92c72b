"""System heterogeneity: dropout, stragglers, deadlines, and the simulated clock."""

from collections import Counter
from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedkd.federation import serialization
from fedkd.federation.aggregation import average
from fedkd.federation.system_heterogeneity import HOMOGENEOUS, make_devices
from fedkd.seed import Seed
from fedkd.types import flatten
from simulations.config import compose
from simulations.federation.runner import run_federation
from tests.fedkd.federation.device_tools import ROUNDS, devices, has_frequencies, run_rounds
from tests.processes import TINY, metrics
from tests.small_runs import STRATEGIES, same_tensors, small_run, small_simulation, strategy_overrides


def test_dropout_rate():
    actual = devices(dropout_rate=0.3)
    dropouts = Counter(client for r in ROUNDS for client in range(6) if actual.drops_out(client, r))
    assert has_frequencies(dropouts, dict.fromkeys(range(6), 0.3), len(ROUNDS))
    assert not any(devices().drops_out(client, r) for r in range(1, 100) for client in range(6))
    assert [actual.drops_out(2, r) for r in range(1, 99)] == [devices(9, dropout_rate=0.3).drops_out(2, r) for r in range(1, 99)], (
        "dropout does not depend on other clients"
    )


def test_steps_of_stragglers():
    actual = devices(straggler_rate=0.4, straggler_min_fraction=0.25)
    steps = Counter(actual.local_steps(0, r) for r in ROUNDS)
    assert min(steps) == 5 and max(steps) == 20 and set(steps) == set(range(5, 21))
    assert has_frequencies(steps, {5: 0.4 * 0.5 / 15, 12: 0.4 / 15, 20: 0.6 + 0.4 * 0.5 / 15}, len(ROUNDS)), (
        "fractions are uniform in 0.25..1"
    )
    assert {devices(straggler_rate=1.0, straggler_min_fraction=0.01, shape=(10, 1)).local_steps(0, r) for r in range(1, 99)} == {1}, (
        "at least one step"
    )
    assert (
        {devices().local_steps(0, r) for r in range(1, 99)}
        == {20}
        == {devices(straggler_rate=1.0, straggler_min_fraction=1.0).local_steps(0, r) for r in range(1, 99)}
    )


def test_chunks_are_sorted_by_steps():
    simulation, _ = small_simulation("num_clients=8", "local_steps=20", "systems.straggler_rate=0.6")
    steps = [simulation.devices.local_steps(client, 3) for client in range(8)]
    assert [len(simulation.client(client, 3).batches()) for client in range(8)] == steps and 20 in steps and min(steps) < 20
    chunks = simulation.split_into_chunks(range(8), 3, 3)
    assert [client for chunk in chunks for client in chunk] == sorted(range(8), key=lambda client: (-steps[client], client))
    assert simulation.num_examples_per_round(0, 3) == 16 * steps[0] and simulation.split_into_chunks(chunks[1], 3, 3) == [chunks[1]]


def test_stragglers_in_a_vectorized_chunk():
    given = (
        "strategy=fedgen",
        *strategy_overrides("fedgen"),
        "precision=float64",
        "clients_per_round=5",
        "batch_size=8",
        "systems.straggler_rate=0.7",
    )
    alone, together, complete = small_run(*given), small_run(*given, "clients_per_vmap=3"), small_run(*given, "systems.straggler_rate=0.0")
    for left, right in ((together.state, alone.state), *zip(together.client_states.values(), alone.client_states.values(), strict=True)):
        for (key, value), other in zip(flatten(left).items(), flatten(right).values(), strict=True):
            assert_close(value, other, rtol=1e-11, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
    assert not torch.equal(alone.state["model"]["head.weight"], complete.state["model"]["head.weight"])


def test_seconds_of_a_client():
    """200 bytes at 100 per second, 10 * 20 examples at 50 per second, and 300 bytes at 100 per second."""
    assert devices(bytes_per_second=100.0, examples_per_second=50.0).client_seconds(0, 1, 200, 300) == 2 + 4 + 3


def test_speeds_are_lognormal():
    actual = devices(10_000, examples_per_second=50.0, speed_sigma=0.5, bandwidth_sigma=2.0)
    for values, median, sigma in ((actual.speeds, 50.0, 0.5), (actual.bandwidths, 1e6, 2.0)):
        logs = np.log(np.array(values) / median) / sigma
        assert abs(logs.mean()) < 0.05 and abs(logs.std() - 1) < 0.04 and 0.3 < (logs > 0.5).mean() < 0.32
    assert abs(np.corrcoef(np.log(actual.speeds), np.log(actual.bandwidths))[0, 1]) < 0.05, "speeds and bandwidths are independent"
    assert devices(3).speeds == [1000.0] * 3 and devices(3).bandwidths == [1e6] * 3


@pytest.mark.parametrize(
    ("deadline", "chosen", "sent", "seconds", "late"),
    [
        (None, 3, {0: 100, 1: 300, 2: 200}, 3.0, set()),
        (None, 3, {0: 100}, 1.0, set()),  # without a deadline dropouts are known at once
        (None, 3, {}, 0.0, set()),
        (3.0, 3, {0: 100, 1: 300, 2: 200}, 3.0, set()),  # at the deadline
        (10.0, 3, {0: 100, 1: 300, 2: 200}, 3.0, set()),  # no client is missing
        (10.0, 3, {0: 100, 1: 300}, 10.0, set()),  # one client dropped out
        (2.5, 3, {0: 100, 1: 300, 2: 200}, 2.5, {1}),
        (0.5, 2, {0: 100, 1: 300}, 0.5, {0, 1}),
        (0.5, 2, {}, 0.5, set()),
        (0.5, 0, {}, 0.0, set()),  # no client was sampled
    ],
)  # fmt: skip
def test_duration_of_a_round(deadline, chosen, sent, seconds, late):
    """With 100 bytes per second and no local steps."""
    timing = devices(shape=(10, 0), bytes_per_second=100.0, deadline=deadline).round_timing(1, chosen, {c: (0, n) for c, n in sent.items()})
    assert (timing.seconds, timing.late) == (seconds, late)


SLOW = ("systems.speed_sigma=1", "systems.bandwidth_sigma=1.5", "systems.examples_per_second=100", "systems.bytes_per_second=5e4")


FEDAVG = ("strategy=fedavg", "num_clients=8", "clients_per_round=5", "rounds=3")


def expected_seconds(simulation, server_round: int) -> dict[int, float]:
    """The seconds of each client in a round of FedAvg, whose update has the size of the broadcast."""
    model = sum(
        value.numel() * value.element_size() for value in simulation.strategy.init_server(simulation.federation().server)["model"].values()
    )
    speed, bandwidth = ((simulation.seed / "systems" / what).numpy().standard_normal(8) for what in ("speed", "bandwidth"))
    batch = [min(16, len(index)) for index in simulation.partition.train]
    return {
        k: model / (5e4 * exp(1.5 * bandwidth[k])) + batch[k] * 4 / (100 * exp(speed[k])) + model / (5e4 * exp(1.5 * bandwidth[k]))
        for k in simulation.strategy.sample_clients(range(8), server_round)
    }


def test_clock_with_real_messages():
    simulation, _, rounds = run_rounds(*FEDAVG, *SLOW)
    lasted = np.diff([0.0, *(done.simulated_seconds for done in rounds)])
    expected = [max(expected_seconds(simulation, done.number).values()) for done in rounds]
    assert lasted == pytest.approx(expected, rel=1e-12) and len({round(seconds, 9) for seconds in lasted}) > 1
    assert all((done.num_dropouts, done.num_missed_deadline, len(done.train_replies)) == (0, 0, 5) for done in rounds)


def test_deadline_excludes_late_clients():
    """Late clients have no effect: their updates, bytes and new states do not count."""
    simulation, _ = small_simulation(*FEDAVG, *SLOW)
    times = expected_seconds(simulation, 1)
    third = sorted(times.values())[2]
    late = {client for client, seconds in times.items() if seconds > third + 1e-6}
    simulation, grid, (done,) = run_rounds(*FEDAVG, *SLOW, "rounds=1", f"systems.deadline={third + 1e-6}")
    assert len(late) == 2 and {reply.metadata.src_node_id for reply in done.train_replies} == set(times) - late == set(grid.client_states)
    assert (done.num_missed_deadline, done.num_dropouts, done.simulated_seconds) == (2, 0, third + 1e-6)
    assert done.downlink_bytes / 5 == done.uplink_bytes / 3 > 0
    broadcast = simulation.strategy.init_server(simulation.federation().server)
    updates = [simulation.strategy.train(simulation.client(client, 1), broadcast, None, 1)[0] for client in sorted(set(times) - late)]
    expected = average([u.state["model"] for u in updates], simulation.strategy.aggregation_weights(updates))
    assert same_tensors(serialization.from_record(done.arrays)["model"], expected)


def test_dropouts_receive_nothing():
    simulation, grid, rounds = run_rounds(*FEDAVG, "systems.dropout_rate=0.5", "systems.deadline=50")
    for done in rounds:
        cohort = simulation.strategy.sample_clients(range(8), done.number)
        there = [client for client in cohort if not simulation.devices.drops_out(client, done.number)]
        assert [reply.metadata.src_node_id for reply in done.train_replies] == there and done.num_dropouts == 5 - len(there)
        assert done.downlink_bytes == done.uplink_bytes, "dropouts receive no broadcast"
    assert sum(done.num_dropouts for done in rounds) > 0 and rounds[0].num_dropouts < 5
    assert set(grid.client_states) == {reply.metadata.src_node_id for done in rounds for reply in done.train_replies}
    waited = [done.simulated_seconds for done in rounds if done.num_dropouts]
    assert all(np.diff([0.0, *(done.simulated_seconds for done in rounds)])[[done.num_dropouts > 0 for done in rounds]] == 50) and waited


@pytest.mark.parametrize("name", STRATEGIES)
def test_round_without_clients_changes_nothing(name):
    simulation, grid, rounds = run_rounds(
        f"strategy={name}", *strategy_overrides(name), "systems.deadline=1e-9", "rounds=2", "evaluation.every=1"
    )
    assert len(rounds) == 2 and grid.client_states == {}
    assert same_tensors(
        serialization.from_record(rounds[1].arrays),
        serialization.from_record(serialization.to_record(simulation.strategy.init_server(simulation.federation().server))),
    )
    assert [(done.num_missed_deadline, len(done.train_replies), done.uplink_bytes, done.simulated_seconds) for done in rounds] == [
        (3, 0, 0, 1e-9),
        (3, 0, 0, 2e-9),
    ]
    assert all("train_loss" not in done.metrics and done.metrics["local_test_accuracy"] >= 0 for done in rounds)
    assert rounds[0].metrics.get("global_test_accuracy") == rounds[1].metrics.get("global_test_accuracy")


def seed_without_clients_in_first_round() -> int:
    """A seed with which both clients of the first round drop out, and at least one client trains in the second."""

    def there(seed: int, server_round: int) -> int:
        actual = devices(seed=seed, dropout_rate=0.6)
        return sum(not actual.drops_out(client, server_round) for client in actual.sample_clients(range(6), 2, server_round))

    return next(seed for seed in range(99) if not there(seed, 1) and there(seed, 2))


def test_run_without_clients_in_the_first_round(tmp_path):
    """The first row has empty cells, and metrics of later rounds still have columns."""
    given = (
        *TINY,
        "clients_per_round=2",
        "systems.dropout_rate=0.6",
        "rounds=2",
        f"seed={seed_without_clients_in_first_round()}",
        f"output={tmp_path}",
        "engine=local",
    )
    first, second = metrics(run_federation(compose([*given]))).to_dict("records")
    assert (first["num_clients_aggregated"], first["num_dropouts"], first["train_loss"], first["simulated_seconds"]) == (
        "0",
        "2",
        "",
        "0.0",
    )
    assert first["generator_teacher_loss"] == "" != second["generator_teacher_loss"] and float(second["train_loss"]) > 0
    assert (
        first["global_test_accuracy"] != ""
        and first["global_test_accuracy_class_00"] != ""
        and list(first)[-1] == "global_test_accuracy_class_09"
    )


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"new_clients_join_round": 11}, ["new_clients_join_round", "rounds (10)", "11"]),
        ({"num_new_clients": 4, "new_clients_join_round": 2}, ["num_new_clients", "clients_per_round (3)", "at most 3", "4"]),
        ({"num_new_clients": 6, "client_sampling": "trace", "trace": "x"}, ["num_new_clients", "one client", "at most 5", "6"]),
    ],
)
def test_rules_that_do_not_fit_the_run(knobs, words):
    with pytest.raises(ValueError, match=" must ") as error:
        make_devices(replace(HOMOGENEOUS, **knobs), Seed(0), [(1, 1)] * 6, [9] * 6, 3, 10)
    assert all(word in str(error.value) for word in words)
