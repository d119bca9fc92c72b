"""Tools for tests of failures: overrides of a federation whose clients fail on request, and comparisons."""

from fedkd.checkpoint import read_checkpoint
from tests.processes import metrics
from tests.small_runs import same_tensors

OVERRIDES = (
    "num_clients=6", "clients_per_round=6", "rounds=4", "local_steps=2", "partition.alpha=1.0", "progress=false", "strategy=fedavg",
    "clients_per_vmap=1",
)  # fmt: skip


def failing_run(folder, *more: str) -> list[str]:
    return [
        *OVERRIDES,
        "strategy._target_=tests.failing_clients.FailingClients",
        "allow_targets=[tests]",
        f"+strategy.folder={folder}",
        *more,
    ]


def equal_results(folder, whole) -> bool:
    actual, expected = read_checkpoint(folder), read_checkpoint(whole)
    tables = [metrics(f).drop(columns="num_failures") for f in (folder, whole)]
    return (
        same_tensors(actual.state, expected.state)
        and same_tensors(actual.client_states, expected.client_states)
        and tables[0].equals(tables[1])
    )
