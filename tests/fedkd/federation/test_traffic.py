"""Bytes of a round, counted by hand, against the columns of a run."""

import pytest

from tests.processes import metrics, quick
from tests.small_runs import small_simulation

OVERRIDES = (
    "engine=local",
    "num_clients=6",
    "clients_per_round=4",
    "rounds=2",
    "local_steps=2",
    "partition.alpha=1.0",
    "progress=false",
    "clients_per_vmap=1",
    "output=runs",
)


CLASSES, EMBEDDING, NOISE, HIDDEN = 10, 32, 32, 256


def num_parameters(size: int) -> int:
    """Number of parameters of the default network: 3x3 convolutions with stride 2 to 6 and 16 channels, with BatchNorm."""
    side = (size + 3) // 4
    return (9 * 6 + 6) + 2 * 6 + (9 * 6 * 16 + 16) + 2 * 16 + (16 * side * side * EMBEDDING + EMBEDDING) + (EMBEDDING * CLASSES + CLASSES)


MODEL = num_parameters(8)


STATISTICS = 2 * (6 + 16) * 4 + 2 * 8  # running means and variances, and two counts of batches in 64 bits


GENERATOR = ((NOISE + CLASSES) * HIDDEN + HIDDEN) + 2 * HIDDEN + (HIDDEN * EMBEDDING + EMBEDDING)


GENERATOR_STATISTICS = 2 * HIDDEN * 4 + 8


EXTRA_DOWNLINK = {
    "fedgen": GENERATOR * 4 + GENERATOR_STATISTICS + CLASSES * 4,
    "fedavg": 0,
    "fedprox": 0,
    "feddistill": CLASSES * CLASSES * 4,
}


EXTRA_UPLINK = {"fedgen": CLASSES * 8, "fedavg": 0, "fedprox": 0, "feddistill": CLASSES * CLASSES * 4}


def traffic(where, *overrides: str) -> tuple[set[str], set[str]]:
    ended = quick(where, *OVERRIDES, *overrides)
    assert ended.code == 0, ended.err
    table = metrics(ended.folder)
    return set(table["downlink_bytes"]), set(table["uplink_bytes"])


def test_number_of_parameters():
    simulation, _ = small_simulation()
    assert sum(p.numel() for p in simulation.model.parameters()) == MODEL


@pytest.mark.parametrize("strategy", EXTRA_DOWNLINK)
def test_bytes_with_local_statistics(tmp_path, strategy):
    assert traffic(tmp_path, f"strategy={strategy}") == (
        {str(4 * (MODEL * 4 + EXTRA_DOWNLINK[strategy]))},
        {str(4 * (MODEL * 4 + EXTRA_UPLINK[strategy]))},
    )


def test_bytes_with_averaged_statistics(tmp_path):
    each = 4 * (MODEL * 4 + STATISTICS)
    assert traffic(tmp_path, "strategy=fedavg", "strategy.batchnorm=averaged") == ({str(each)}, {str(each)})


def test_bytes_in_double_precision(tmp_path):
    assert traffic(tmp_path, "strategy=fedavg", "precision=float64") == ({str(4 * MODEL * 8)}, {str(4 * MODEL * 8)})


def test_bytes_of_logits_only(tmp_path):
    assert traffic(tmp_path, "strategy=feddistill_logits") == ({str(4 * CLASSES * CLASSES * 4)}, {str(4 * CLASSES * CLASSES * 4)})
