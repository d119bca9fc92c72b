"""Client sampling: uniform, proportional, cyclic, traces, and new clients."""

import csv
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from omegaconf import OmegaConf

from fedkd.config.build import build
from fedkd.federation.client_sampling import read_trace
from fedkd.federation.messaging import Federation
from fedkd.federation.system_heterogeneity import HOMOGENEOUS, Devices, make_devices
from fedkd.seed import Seed
from simulations.config import compose
from simulations.federation.runner import run_federation
from simulations.setup.simulation import build_simulation
from tests.fedkd.federation.device_tools import ROUNDS, devices, has_frequencies, run_rounds
from tests.processes import TINY, assert_refused, metrics, quick
from tests.small_runs import small_simulation


def test_default_values():
    assert build(compose([]), "systems") == HOMOGENEOUS
    server = small_simulation()[0].federation().server
    assert Federation(server, 3, Devices(HOMOGENEOUS, server.seed, [(0, 0)] * 6, [1] * 6)).devices.sample_clients(
        range(6), 3, 1
    ) == small_simulation()[0].strategy.sample_clients(range(6), 1)


@pytest.mark.parametrize("server_round", [1, 7])
def test_uniform_sampling(server_round):
    drawn = (Seed(3) / "round" / server_round / "cohort").numpy().choice(list(range(20)), 8, replace=False)
    assert devices(20, seed=3).sample_clients(range(20), 8, server_round) == sorted(drawn.tolist())


def test_proportional_sampling():
    """Frequencies of single clients, and of pairs, whose second client is drawn from the remaining ones."""
    sizes = (1, 2, 3, 4)
    actual = devices(4, sizes=sizes, client_sampling="proportional")
    ones = Counter(actual.sample_clients(range(4), 1, r)[0] for r in ROUNDS)
    assert has_frequencies(ones, {client: size / 10 for client, size in enumerate(sizes)}, len(ROUNDS))
    pairs = Counter(tuple(actual.sample_clients(range(4), 2, r)) for r in ROUNDS)
    p = [size / 10 for size in sizes]
    assert has_frequencies(
        pairs, {(a, b): p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]) for a, b in combinations(range(4), 2)}, len(ROUNDS)
    )
    assert not has_frequencies(pairs, dict.fromkeys(combinations(range(4), 2), 1 / 6), len(ROUNDS)), "the frequencies are not uniform"
    included = Counter(client for cohort in pairs.elements() for client in cohort)
    per_example = [included[client] / size for client, size in enumerate(sizes)]
    assert per_example[0] > per_example[3] * 1.1, "drawn without replacement, an example of a large client counts less"


def test_cyclic_sampling():
    actual = devices(7, client_sampling="cyclic")
    rounds = [actual.sample_clients(range(7), 3, r) for r in range(1, 8)]
    assert all(len(set(cohort)) == 3 and cohort == sorted(cohort) for cohort in rounds)
    assert Counter(client for cohort in rounds for client in cohort) == dict.fromkeys(range(7), 3)
    assert not set(rounds[0]) & set(rounds[1]) and actual.sample_clients(range(7), 3, 8) == rounds[0]
    assert len({tuple(devices(7, seed=s, client_sampling="cyclic").sample_clients(range(7), 3, 1)) for s in range(9)}) > 3, (
        "the order depends on the seed"
    )


def test_cyclic_sampling_with_new_clients():
    actual = devices(7, client_sampling="cyclic", num_new_clients=3, new_clients_join_round=3)
    early = [set(actual.sample_clients(range(7), 2, r)) for r in (1, 2)]
    assert early[0] | early[1] == set(range(7)) - actual.new_clients, "each of the four other clients once"
    assert Counter(c for r in range(3, 10) for c in actual.sample_clients(range(7), 2, r)) == dict.fromkeys(range(7), 2)


def test_trace_is_repeated(tmp_path):
    (tmp_path / "trace.csv").write_text("client,battery,round\n3,1,2\n1,1,1\n0,0.5,2\n4,1,3\n")
    trace = read_trace(str(tmp_path / "trace.csv"), 5)
    assert trace == [[1], [0, 3], [4]]
    actual = replace(devices(5, client_sampling="trace", trace="x"), trace=trace)
    assert [actual.sample_clients(range(5), 2, r) for r in range(1, 8)] == [[1], [0, 3], [4]] * 2 + [[1]]
    late = replace(devices(5, client_sampling="trace", trace="x", num_new_clients=4, new_clients_join_round=3), trace=trace)
    assert [set(late.sample_clients(range(5), 2, r)) for r in (1, 2, 3)] == [{1} - late.new_clients, {0, 3} - late.new_clients, {4}]


def test_a_trace_may_come_from_a_spreadsheet(tmp_path):
    for text in ("\ufeffround,client\r\n1,0\r\n2,2\r\n", "round, client\n1, 0\n2, 2\n"):
        (tmp_path / "trace.csv").write_bytes(text.encode())
        assert read_trace(str(tmp_path / "trace.csv"), 3) == [[0], [2]]


@pytest.mark.parametrize("client_sampling", ["uniform", "proportional", "cyclic"])
def test_clients_without_training_examples_are_never_sampled(client_sampling):
    sizes = (100, 0, 50, 0, 7, 9)
    found = devices(sizes=sizes, client_sampling=client_sampling, num_new_clients=1, new_clients_join_round=3)
    assert found.new_clients <= {0, 2, 4, 5}
    sampled = [found.sample_clients(range(6), 3, server_round) for server_round in range(1, 41)]
    assert all(len(set(cohort)) == 3 and not {1, 3} & set(cohort) for cohort in sampled)
    assert set().union(*sampled) == {0, 2, 4, 5}


def test_a_trace_must_not_name_clients_without_training_examples(tmp_path):
    (tmp_path / "trace.csv").write_text("round,client\n1,0\n2,1\n")
    rules = replace(HOMOGENEOUS, client_sampling="trace", trace=str(tmp_path / "trace.csv"))
    with pytest.raises(ValueError, match="trace must name clients with training examples, got 'client 1 without any'"):
        make_devices(rules, Seed(0), [(10, 1)] * 3, [10, 0, 10], 1, 2)
    with pytest.raises(ValueError, match="num_new_clients must leave clients_per_round .2. of 2 clients with training examples"):
        make_devices(replace(HOMOGENEOUS, num_new_clients=1), Seed(0), [(10, 1)] * 3, [10, 0, 10], 2, 2)


TRACES = {
    "columns": ("round,who\n1,0\n", ["columns round and client"]),
    "semicolons": ("round;client\n1;0\n", ["separated by a comma", "'round;client'"]),
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
def test_invalid_traces(tmp_path, case):
    text, words = TRACES[case]
    (tmp_path / "trace.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="^trace must .*, got ") as error:
        read_trace(str(tmp_path / "trace.csv"), 6)
    assert all(word in str(error.value) for word in [*words, "trace.csv"])


def test_invalid_trace_is_an_error_before_the_run(tmp_path):
    (tmp_path / "trace.csv").write_text("round,client\n1,0\n2,9\n")
    given = [
        "engine=local",
        *TINY,
        "systems.client_sampling=trace",
        f"systems.trace={tmp_path / 'trace.csv'}",
        f"output={tmp_path / 'runs'}",
    ]
    assert_refused(quick(tmp_path, *given), tmp_path / "runs", "systems.trace must", "num_clients=6", "client 9")


def test_hash_depends_on_the_content_of_a_trace(tmp_path):
    def key(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        config = compose([*TINY, "systems.client_sampling=trace", f"systems.trace={tmp_path / name}"])
        return build_simulation(OmegaConf.to_yaml(config, resolve=True)).hash

    assert key("a.csv", "round,client\n1,0\n2,1\n") == key("b.csv", "client,round\n1,2\n0,1\n") != key("c.csv", "round,client\n1,0\n2,2\n")


NEW = (
    "num_clients=8",
    "clients_per_round=4",
    "rounds=6",
    "systems.num_new_clients=4",
    "systems.new_clients_join_round=4",
    "evaluation.every=2",
)


@pytest.mark.parametrize("client_sampling", ["uniform", "proportional", "cyclic"])
def test_new_clients_train_from_their_first_round(client_sampling):
    simulation, _, rounds = run_rounds("strategy=fedavg", *NEW, f"systems.client_sampling={client_sampling}")
    new = simulation.devices.new_clients
    trained = {done.number: {reply.metadata.src_node_id for reply in done.train_replies} for done in rounds}
    assert len(new) == 4 and all(not trained[number] & new for number in (1, 2, 3))
    assert all(len(clients) == 4 for clients in trained.values()) and (trained[4] | trained[5] | trained[6]) & new
    for done in rounds:
        assert ("new_client_test_accuracy" in done.metrics) == (done.number % 2 == 0)


@pytest.mark.parametrize("strategy", ["fedavg", "fedensemble"])
def test_accuracy_of_new_clients(tmp_path, strategy):
    given = [option for option in TINY if not option.startswith("strategy.")]
    folder = run_federation(compose([*given, f"strategy={strategy}", *NEW, f"output={tmp_path}", "engine=local"]))
    simulation = build_simulation((folder / "config.yaml").read_text())
    with open(folder / "clients.csv", newline="") as file:
        clients = [
            row for row in csv.DictReader(file) if row["local_test_accuracy"] and int(row["client_id"]) in simulation.devices.new_clients
        ]
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


def test_no_column_without_new_clients():
    assert "new_client_test_accuracy" not in run_rounds("strategy=fedavg", "rounds=1")[2][0].metrics
