"""Unlike devices: who takes part, who fails to, and how long it takes on the simulated clock."""

import csv
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import combinations
from math import exp, sqrt

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.testing import assert_close

from fedkd.checkpoint import read_checkpoint
from fedkd.config.build import build
from fedkd.federation import serialization
from fedkd.federation.aggregation import average
from fedkd.federation.client_sampling import read_trace
from fedkd.federation.messaging import Federation
from fedkd.federation.server_loop import Round
from fedkd.federation.system_heterogeneity import HOMOGENEOUS, Devices, make_devices
from fedkd.seed import Seed
from fedkd.types import flatten
from simulations.config import compose
from simulations.engine.local_engine import LocalGrid
from simulations.engine.ray_engine import RayGrid
from simulations.federation.runner import run_federation, start_global_evaluation
from simulations.setup.simulation import build_simulation
from tests.conftest import STRATEGIES, options, run, same, settle
from tests.fedkd.config.test_validation import refused
from tests.processes import TINY, differing, metrics, quick

ROUNDS = range(1, 4001)


def devices(num_clients: int = 6, seed: int = 0, shape: tuple[int, int] = (10, 20), sizes: tuple[int, ...] = (), **knobs) -> Devices:
    """Clients that are alike but for ``knobs``."""
    return Devices(replace(HOMOGENEOUS, **knobs), Seed(seed), [shape] * num_clients, sizes or [100] * num_clients)


def near(counts: Counter, chances: dict, draws: int) -> bool:
    """Frequencies are within five standard deviations of what they should be."""
    return all(abs(counts[key] / draws - p) < 5 * sqrt(p * (1 - p) / draws) for key, p in chances.items())


# ------------------------------------------------------------------------------------------------------------- client_sampling
def test_neutral_is_what_the_configuration_says():
    assert build(compose([]), "systems") == HOMOGENEOUS
    server = settle()[0].federation().server
    assert Federation(server, 3).devices.sample_clients(range(6), 3, 1) == settle()[0].strategy.cohort(range(6), 1)


@pytest.mark.parametrize("server_round", [1, 7])
def test_uniform_is_the_draw_that_it_always_was(server_round):
    drawn = (Seed(3) / "round" / server_round / "cohort").numpy().choice(list(range(20)), 8, replace=False)
    assert devices(20, seed=3).sample_clients(range(20), 8, server_round) == sorted(drawn.tolist())


def test_by_size_draws_in_proportion_to_examples():
    """One client at a time, and pairs: the second is drawn from who is left."""
    sizes = (1, 2, 3, 4)
    ours = devices(4, sizes=sizes, client_sampling="proportional")
    ones = Counter(ours.sample_clients(range(4), 1, r)[0] for r in ROUNDS)
    assert near(ones, {client: size / 10 for client, size in enumerate(sizes)}, len(ROUNDS))
    pairs = Counter(tuple(ours.sample_clients(range(4), 2, r)) for r in ROUNDS)
    p = [size / 10 for size in sizes]
    assert near(pairs, {(a, b): p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]) for a, b in combinations(range(4), 2)}, len(ROUNDS))
    assert not near(pairs, dict.fromkeys(combinations(range(4), 2), 1 / 6), len(ROUNDS)), "which is not uniform"


def test_cyclic_takes_all_in_turn():
    ours = devices(7, client_sampling="cyclic")
    rounds = [ours.sample_clients(range(7), 3, r) for r in range(1, 8)]
    assert all(len(set(cohort)) == 3 and cohort == sorted(cohort) for cohort in rounds)
    assert Counter(client for cohort in rounds for client in cohort) == dict.fromkeys(range(7), 3)
    assert not set(rounds[0]) & set(rounds[1]) and ours.sample_clients(range(7), 3, 8) == rounds[0]
    assert len({tuple(devices(7, seed=s, client_sampling="cyclic").sample_clients(range(7), 3, 1)) for s in range(9)}) > 3, (
        "the seed draws the order"
    )


def test_cyclic_begins_anew_when_newcomers_join():
    ours = devices(7, client_sampling="cyclic", num_new_clients=3, new_clients_join_round=3)
    early = [set(ours.sample_clients(range(7), 2, r)) for r in (1, 2)]
    assert early[0] | early[1] == set(range(7)) - ours.newcomers, "the four others, once each"
    assert Counter(c for r in range(3, 10) for c in ours.sample_clients(range(7), 2, r)) == dict.fromkeys(range(7), 2)


def test_a_trace_is_repeated(tmp_path):
    (tmp_path / "trace.csv").write_text("client,battery,round\n3,1,2\n1,1,1\n0,0.5,2\n4,1,3\n")
    trace = read_trace(str(tmp_path / "trace.csv"), 5)
    assert trace == [[1], [0, 3], [4]]
    ours = replace(devices(5, client_sampling="trace", trace="x"), trace=trace)
    assert [ours.sample_clients(range(5), 2, r) for r in range(1, 8)] == [[1], [0, 3], [4]] * 2 + [[1]]
    late = replace(devices(5, client_sampling="trace", trace="x", num_new_clients=4, new_clients_join_round=3), trace=trace)
    assert [set(late.sample_clients(range(5), 2, r)) for r in (1, 2, 3)] == [{1} - late.newcomers, {0, 3} - late.newcomers, {4}]


TRACES = {
    "columns": ("round,who\n1,0\n", ["columns round and client"]),
    "empty": ("", ["columns round and client"]),
    "rowless": ("round,client\n", ["a row"]),
    "unknown client": ("round,client\n1,0\n2,6\n", ["0..5", "num_clients=6", "round 2, client 6"]),
    "negative": ("round,client\n1,-1\n", ["whole numbers", "client -1"]),
    "words": ("round,client\nfirst,1\n", ["whole numbers", "first"]),
    "short": ("round,client\n1\n", ["whole numbers", "row 2"]),
    "twice": ("round,client\n1,2\n1,2\n", ["each once", "row 3"]),
    "gap": ("round,client\n1,2\n3,2\n", ["1, 2, ...", "round 3 follows 1"]),
    "from zero": ("round,client\n0,2\n1,2\n", ["1, 2, ...", "round 0"]),
    "binary": (b"\xff\xfe\x00\x81", ["can be read"]),
}


@pytest.mark.parametrize("case", TRACES)
def test_a_trace_that_is_none(tmp_path, case):
    text, words = TRACES[case]
    (tmp_path / "trace.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="^trace must .*, got ") as error:
        read_trace(str(tmp_path / "trace.csv"), 6)
    assert all(word in str(error.value) for word in [*words, "trace.csv"])


def test_a_trace_that_is_none_is_refused_before_any_work(tmp_path):
    (tmp_path / "trace.csv").write_text("round,client\n1,0\n2,9\n")
    given = [
        "engine=local",
        *TINY,
        "systems.client_sampling=trace",
        f"systems.trace={tmp_path / 'trace.csv'}",
        f"output={tmp_path / 'runs'}",
    ]
    refused(quick(tmp_path, *given), tmp_path / "runs", "systems.trace must", "num_clients=6", "client 9")


def test_a_trace_counts_by_content(tmp_path):
    def key(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        config = compose([*TINY, "systems.client_sampling=trace", f"systems.trace={tmp_path / name}"])
        return build_simulation(OmegaConf.to_yaml(config, resolve=True)).hash

    assert key("a.csv", "round,client\n1,0\n2,1\n") == key("b.csv", "client,round\n1,2\n0,1\n") != key("c.csv", "round,client\n1,0\n2,2\n")


# ------------------------------------------------------------------------------------------------------------- who fails to
def test_dropout_is_as_frequent_as_it_should_be():
    ours = devices(dropout_rate=0.3)
    gone = Counter(client for r in ROUNDS for client in range(6) if ours.drops_out(client, r))
    assert near(gone, dict.fromkeys(range(6), 0.3), len(ROUNDS))
    assert not any(devices().drops_out(client, r) for r in range(1, 100) for client in range(6))
    assert [ours.drops_out(2, r) for r in range(1, 99)] == [devices(9, dropout_rate=0.3).drops_out(2, r) for r in range(1, 99)], (
        "whoever else is there"
    )


def test_stragglers_do_a_share_of_their_steps():
    ours = devices(straggler_rate=0.4, straggler_min_fraction=0.25)
    steps = Counter(ours.steps(0, r) for r in ROUNDS)
    assert min(steps) == 5 and max(steps) == 20 and set(steps) == set(range(5, 21))
    assert near(steps, {5: 0.4 * 0.5 / 15, 12: 0.4 / 15, 20: 0.6 + 0.4 * 0.5 / 15}, len(ROUNDS)), "shares are uniform in 0.25..1"
    assert {devices(straggler_rate=1.0, straggler_min_fraction=0.01, shape=(10, 1)).steps(0, r) for r in range(1, 99)} == {1}, (
        "at least one"
    )
    assert (
        {devices().steps(0, r) for r in range(1, 99)}
        == {20}
        == {devices(straggler_rate=1.0, straggler_min_fraction=1.0).steps(0, r) for r in range(1, 99)}
    )


def test_a_straggler_trains_that_many_steps_and_chunks_go_by_them():
    home, _ = settle("num_clients=8", "local_steps=20", "systems.straggler_rate=0.6")
    steps = [home.devices.steps(client, 3) for client in range(8)]
    assert [len(home.client(client, 3).batches()) for client in range(8)] == steps and 20 in steps and min(steps) < 20
    chunks = home.chunks(range(8), 3, 3)
    assert [client for chunk in chunks for client in chunk] == sorted(range(8), key=lambda client: (-steps[client], client))
    assert home.load(0, 3) == 16 * steps[0] and home.chunks(chunks[1], 3, 3) == [chunks[1]]


def test_a_cohort_with_stragglers_is_each_client_alone():
    given = (
        "strategy=fedgen",
        *options("fedgen"),
        "precision=float64",
        "clients_per_round=5",
        "batch_size=8",
        "systems.straggler_rate=0.7",
    )
    alone, together, whole = run(*given), run(*given, "clients_per_vmap=3"), run(*given, "systems.straggler_rate=0.0")
    for left, right in ((together.state, alone.state), *zip(together.memories.values(), alone.memories.values(), strict=True)):
        for (key, value), other in zip(flatten(left).items(), flatten(right).values(), strict=True):
            assert_close(value, other, rtol=1e-11, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
    assert not torch.equal(alone.state["model"]["head.weight"], whole.state["model"]["head.weight"])


# ------------------------------------------------------------------------------------------------------------- the clock
def test_a_client_s_time_by_hand():
    """200 bytes at 100 a second, 10 * 20 examples at 50 a second, 300 bytes."""
    assert devices(bytes_per_second=100.0, examples_per_second=50.0).seconds(0, 1, 200, 300) == 2 + 4 + 3


def test_devices_are_lognormal():
    ours = devices(10_000, examples_per_second=50.0, speed_sigma=0.5, bandwidth_sigma=2.0)
    for values, median, sigma in ((ours.speeds, 50.0, 0.5), (ours.bandwidths, 1e6, 2.0)):
        logs = np.log(np.array(values) / median) / sigma
        assert abs(logs.mean()) < 0.05 and abs(logs.std() - 1) < 0.04 and 0.3 < (logs > 0.5).mean() < 0.32
    assert abs(np.corrcoef(np.log(ours.speeds), np.log(ours.bandwidths))[0, 1]) < 0.05, "independent of one another"
    assert devices(3).speeds == [1000.0] * 3 and devices(3).bandwidths == [1e6] * 3


@pytest.mark.parametrize(
    ("deadline", "chosen", "sent", "seconds", "late"),
    [
        (None, 3, {0: 100, 1: 300, 2: 200}, 3.0, set()),
        (None, 3, {0: 100}, 1.0, set()),  # who dropped out is known at once
        (None, 3, {}, 0.0, set()),
        (3.0, 3, {0: 100, 1: 300, 2: 200}, 3.0, set()),  # just in time
        (10.0, 3, {0: 100, 1: 300, 2: 200}, 3.0, set()),  # nobody to wait for any longer
        (10.0, 3, {0: 100, 1: 300}, 10.0, set()),  # one will never answer
        (2.5, 3, {0: 100, 1: 300, 2: 200}, 2.5, {1}),
        (0.5, 2, {0: 100, 1: 300}, 0.5, {0, 1}),
        (0.5, 2, {}, 0.5, set()),
        (0.5, 0, {}, 0.0, set()),  # nobody was wanted
    ],
)  # fmt: skip
def test_a_round_lasts(deadline, chosen, sent, seconds, late):
    """At 100 bytes a second and no steps to do."""
    passed = devices(shape=(10, 0), bytes_per_second=100.0, deadline=deadline).round_timing(1, chosen, {c: (0, n) for c, n in sent.items()})
    assert (passed.seconds, passed.late) == (seconds, late)


SLOW = ("systems.speed_sigma=1", "systems.bandwidth_sigma=1.5", "systems.examples_per_second=100", "systems.bytes_per_second=5e4")
FEDAVG = ("strategy=fedavg", "num_clients=8", "clients_per_round=5", "rounds=3")


def followed(*overrides: str) -> tuple[object, LocalGrid, list[Round]]:
    """A small federation, and what was to be recorded of its rounds."""
    home, text = settle(*overrides)
    grid, rounds = LocalGrid(home.config.num_clients, text), []
    home.strategy.start(
        grid,
        num_rounds=home.config.rounds,
        on_round=rounds.append,
        evaluate_fn=lambda number, arrays: start_global_evaluation(home, grid, arrays),
    )
    return home, grid, rounds


def by_hand(home, server_round: int) -> dict[int, float]:
    """The seconds of each client of a round of FedAvg, whose answer has the size of its broadcast."""
    model = sum(value.numel() * value.element_size() for value in home.strategy.init_server(home.federation().server)["model"].values())
    speed, bandwidth = ((home.seed / "systems" / what).numpy().standard_normal(8) for what in ("speed", "bandwidth"))
    batch = [min(16, len(index)) for index in home.partition.train]
    return {
        k: model / (5e4 * exp(1.5 * bandwidth[k])) + batch[k] * 4 / (100 * exp(speed[k])) + model / (5e4 * exp(1.5 * bandwidth[k]))
        for k in home.strategy.cohort(range(8), server_round)
    }


def test_the_clock_by_hand_from_real_messages():
    home, _, rounds = followed(*FEDAVG, *SLOW)
    lasted = np.diff([0.0, *(done.simulated_seconds for done in rounds)])
    expected = [max(by_hand(home, done.number).values()) for done in rounds]
    assert lasted == pytest.approx(expected, rel=1e-12) and len({round(seconds, 9) for seconds in lasted}) > 1
    assert all((done.num_dropouts, done.num_missed_deadline, len(done.trained)) == (0, 0, 5) for done in rounds)


def test_a_deadline_leaves_out_exactly_the_late():
    """Theirs is as if it had never been: neither update, nor bytes, nor memory."""
    home, _ = settle(*FEDAVG, *SLOW)
    times = by_hand(home, 1)
    third = sorted(times.values())[2]
    late = {client for client, seconds in times.items() if seconds > third + 1e-6}
    home, grid, (done,) = followed(*FEDAVG, *SLOW, "rounds=1", f"systems.deadline={third + 1e-6}")
    assert len(late) == 2 and {reply.metadata.src_node_id for reply in done.trained} == set(times) - late == set(grid.memory)
    assert (done.num_missed_deadline, done.num_dropouts, done.simulated_seconds) == (2, 0, third + 1e-6)
    assert done.downlink_bytes / 5 == done.uplink_bytes / 3 > 0
    shared = home.strategy.init_server(home.federation().server)
    updates = [home.strategy.train(home.client(client, 1), shared, None, 1)[0] for client in sorted(set(times) - late)]
    expected = average([u.state["model"] for u in updates], home.strategy.aggregation_weights(updates))
    assert same(serialization.from_record(done.arrays)["model"], expected)


def test_who_drops_out_is_not_asked():
    home, grid, rounds = followed(*FEDAVG, "systems.dropout_rate=0.5", "systems.deadline=50")
    for done in rounds:
        cohort = home.strategy.cohort(range(8), done.number)
        there = [client for client in cohort if not home.devices.drops_out(client, done.number)]
        assert [reply.metadata.src_node_id for reply in done.trained] == there and done.num_dropouts == 5 - len(there)
        assert done.downlink_bytes == done.uplink_bytes, "the broadcast has not reached them"
    assert sum(done.num_dropouts for done in rounds) > 0 and rounds[0].num_dropouts < 5
    assert set(grid.memory) == {reply.metadata.src_node_id for done in rounds for reply in done.trained}
    waited = [done.simulated_seconds for done in rounds if done.num_dropouts]
    assert all(np.diff([0.0, *(done.simulated_seconds for done in rounds)])[[done.num_dropouts > 0 for done in rounds]] == 50) and waited


# ------------------------------------------------------------------------------------------------------------- nobody
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_round_with_nobody_leaves_everything_as_it_is(name):
    home, grid, rounds = followed(f"strategy={name}", *options(name), "systems.deadline=1e-9", "rounds=2", "evaluation.every=1")
    assert len(rounds) == 2 and grid.memory == {}
    assert same(
        serialization.from_record(rounds[1].arrays),
        serialization.from_record(serialization.to_record(home.strategy.init_server(home.federation().server))),
    )
    assert [(done.num_missed_deadline, len(done.trained), done.uplink_bytes, done.simulated_seconds) for done in rounds] == [
        (3, 0, 0, 1e-9),
        (3, 0, 0, 2e-9),
    ]
    assert all("train_loss" not in done.metrics and done.metrics["local_test_accuracy"] >= 0 for done in rounds)
    assert "accuracy" not in rounds[0].metrics or rounds[0].metrics["accuracy"] == rounds[1].metrics["accuracy"]


def alone_at_first() -> int:
    """A seed with which everybody drops out of the first round of two clients, and somebody is there in the second."""

    def there(seed: int, server_round: int) -> int:
        ours = devices(seed=seed, dropout_rate=0.6)
        return sum(not ours.drops_out(client, server_round) for client in ours.sample_clients(range(6), 2, server_round))

    return next(seed for seed in range(99) if not there(seed, 1) and there(seed, 2))


def test_a_run_that_begins_with_nobody_goes_on(tmp_path):
    """Its row is there, empty where there is nothing to say; what later rounds have to say has a column all the same."""
    given = (
        *TINY,
        "clients_per_round=2",
        "systems.dropout_rate=0.6",
        "rounds=2",
        f"seed={alone_at_first()}",
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
    assert first["accuracy"] != "" and first["global_test_accuracy_class_00"] != "" and list(first)[-1] == "global_test_accuracy_class_09"


# ------------------------------------------------------------------------------------------------------------- newcomers
NEW = (
    "num_clients=8",
    "clients_per_round=4",
    "rounds=6",
    "systems.num_new_clients=4",
    "systems.new_clients_join_round=4",
    "evaluation.every=2",
)


@pytest.mark.parametrize("client_sampling", ["uniform", "proportional", "cyclic"])
def test_newcomers_train_from_the_round_in_which_they_join(client_sampling):
    home, _, rounds = followed("strategy=fedavg", *NEW, f"systems.client_sampling={client_sampling}")
    new = home.devices.new_clients
    trained = {done.number: {reply.metadata.src_node_id for reply in done.trained} for done in rounds}
    assert len(new) == 4 and all(not trained[number] & new for number in (1, 2, 3))
    assert all(len(clients) == 4 for clients in trained.values()) and (trained[4] | trained[5] | trained[6]) & new
    for done in rounds:
        assert ("new_client_test_accuracy" in done.metrics) == (done.number % 2 == 0)


@pytest.mark.parametrize("strategy", ["fedavg", "fedensemble"])
def test_newcomers_have_an_accuracy_of_their_own(tmp_path, strategy):
    given = [option for option in TINY if not option.startswith("strategy.")]
    folder = run_federation(compose([*given, f"strategy={strategy}", *NEW, f"output={tmp_path}", "engine=local"]))
    home = build_simulation((folder / "config.yaml").read_text())
    with open(folder / "clients.csv", newline="") as file:
        clients = [row for row in csv.DictReader(file) if row["local_test_accuracy"] and int(row["client"]) in home.devices.new_clients]
    for row in metrics(folder).to_dict("records"):
        tested = [(int(c["num_test_examples"]), float(c["local_test_accuracy"])) for c in clients if c["round"] == row["round"]]
        if int(row["round"]) % 2:
            assert row["new_client_test_accuracy"] == row["local_test_accuracy"] == "" and not tested
        else:
            expected = sum(n * accuracy for n, accuracy in tested) / sum(n for n, _ in tested)
            assert (
                float(row["new_client_test_accuracy"]) == pytest.approx(expected)
                and row["new_client_test_accuracy"] != row["local_test_accuracy"]
            )


def test_there_is_no_such_column_without_newcomers():
    assert "new_client_test_accuracy" not in followed("strategy=fedavg", "rounds=1")[2][0].metrics


# ------------------------------------------------------------------------------------------------------------- all at once
ALL = (
    *TINY, "num_clients=10", "clients_per_round=5", "rounds=8", "clients_per_vmap=2", "checkpoint_every=3", "systems.client_sampling=proportional", "systems.dropout_rate=0.25",
    "systems.straggler_rate=0.5", "systems.deadline=4", "systems.speed_sigma=0.8", "systems.bandwidth_sigma=0.8", "systems.examples_per_second=100",
    "systems.bytes_per_second=3e5", "systems.num_new_clients=3", "systems.new_clients_join_round=4", "evaluation.every=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run with all knobs, in this process."""
    return run_federation(compose([*ALL, f"output={tmp_path_factory.mktemp('whole')}", "engine=local"]))


def test_all_knobs_have_had_a_say(whole):
    table = metrics(whole)
    for column in ("num_dropouts", "num_missed_deadline"):
        assert table[column].astype(int).sum() > 0, column
    assert (table[["num_clients_aggregated", "num_dropouts", "num_missed_deadline"]].astype(int).sum(axis=1) == 5).all()
    time = table["simulated_seconds"].astype(float)
    assert time.is_monotonic_increasing and time.diff().max() <= 4 < time.iloc[-1]
    assert read_checkpoint(whole).simulated_seconds == time.iloc[-1]


def test_another_engine_gives_the_same_bits(whole, tmp_path):
    ray = run_federation(compose([*ALL, f"output={tmp_path}"]), partial(RayGrid, workers=2, num_gpus=0.0, address=None))
    assert set(differing(ray, whole)) <= {"config.yaml"}, "which names the engine"


class Dying(LocalGrid):
    """Fails when it is to train a round: the process might as well have been killed then."""

    def __init__(self, *given, dies: int) -> None:
        super().__init__(*given)
        self.dies = dies

    def begin(self, messages, *, timeout=None):
        if messages[0].metadata.message_type == "train" and messages[0].content["config"]["server-round"] == self.dies:
            raise InterruptedError
        return super().begin(messages, timeout=timeout)


@pytest.mark.parametrize("dies", [2, 6])
def test_killed_and_resumed_is_never_killed(whole, tmp_path, dies):
    """In the second round nothing is on disk to go on from but rows; in the sixth there is a checkpoint of the third."""
    given = [*ALL, f"output={tmp_path}", "engine=local"]
    with pytest.raises(InterruptedError):
        run_federation(compose(given), partial(Dying, dies=dies))
    (folder,) = (tmp_path / "digits").iterdir()
    assert (folder / "checkpoint.json").exists() == (dies == 6)
    assert run_federation(compose(given)) == folder and set(differing(folder, whole)) <= {"config.yaml"}, "which names the output"


# ------------------------------------------------------------------------------------------------------------- Flower's own
FOREIGN = ("~strategy", "+strategy._target_=flwr.serverapp.strategy.FedAvg", "+strategy.fraction_evaluate=0.0")
OURS = [option for option in TINY if not option.startswith("strategy.")]


@pytest.mark.parametrize("knob", ["client_sampling=cyclic", "dropout_rate=0.1", "straggler_rate=0.1", "deadline=9.5", "num_new_clients=1"])
def test_strategies_of_flower_s_own_choose_themselves(tmp_path, knob):
    name, _, value = knob.partition("=")
    with pytest.raises(ValueError, match=rf"^systems\.{name} must be \S+ with FedAvg, which chooses clients itself.*got '?{value}'?$"):
        run_federation(compose(["engine=local", *OURS, *FOREIGN, f"systems.{knob}", f"output={tmp_path / 'runs'}"]))
    assert not (tmp_path / "runs").exists()


def test_the_clock_of_a_strategy_of_flower_s_own(tmp_path):
    """Three steps of 32 examples, the model there and back."""
    given = [
        *OURS,
        *FOREIGN,
        "rounds=2",
        "engine=local",
        f"output={tmp_path}",
        "systems.examples_per_second=10",
        "systems.bytes_per_second=1e3",
    ]
    folder = run_federation(compose(given))
    table, home = metrics(folder), build_simulation((folder / "config.yaml").read_text())
    model = sum(value.numel() * value.element_size() for value in read_checkpoint(folder).state["model"].values())
    most = max(home.shape(client)[0] for client in range(6))
    assert table["simulated_seconds"].astype(float).tolist() == pytest.approx(
        [2 * model / 1e3 + 3 * most / 10, 2 * (2 * model / 1e3 + 3 * most / 10)]
    )
    assert set(table["num_clients_aggregated"]) == {"6"} and set(table["num_dropouts"]) == set(table["num_missed_deadline"]) == {"0"}


# ------------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"new_clients_join_round": 11}, ["new_clients_join_round", "rounds (10)", "11"]),
        ({"num_new_clients": 4, "new_clients_join_round": 2}, ["num_new_clients", "clients_per_round (3)", "at most 3", "4"]),
        ({"num_new_clients": 6, "client_sampling": "trace", "trace": "x"}, ["num_new_clients", "one client", "at most 5", "6"]),
    ],
)
def test_rules_that_do_not_suit_the_run(knobs, words):
    with pytest.raises(ValueError, match=" must ") as error:
        make_devices(replace(HOMOGENEOUS, **knobs), Seed(0), [(1, 1)] * 6, [9] * 6, 3, 10)
    assert all(word in str(error.value) for word in words)
