"""Where a run's files are: two runs never share a folder, and one run has the same folder wherever its data are."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from fedkd.errors import ConfigError
from fedkd.partition.common import write_partition
from fedkd.types import Partition
from simulations.config import compose
from simulations.run_folder.folder import LockedFolder
from simulations.setup.simulation import Simulation, build_simulation
from tests.small_runs import SMALL, small_simulation


class Folder(LockedFolder):
    """A folder whose rows are not checked."""

    def check_rows(self, done: int) -> None:
        """All rows are there."""


def swapped(indices: list[np.ndarray], labels: np.ndarray) -> list[np.ndarray]:
    """The indices after two clients have exchanged one example of the same class."""
    first, second = indices[0].copy(), indices[1].copy()
    i, j = next((i, j) for i in range(len(first)) for j in range(len(second)) if labels[first[i]] == labels[second[j]])
    first[i], second[j] = second[j], first[i]
    return [np.sort(first), np.sort(second), *indices[2:]]


def test_two_partition_files_never_share_a_run_folder(tmp_path):
    base, _ = small_simulation()
    train_labels, test_labels = base.train.y.numpy(), base.client_data.local_test_pool.y.numpy()
    given, hashes = base.partition, {}
    contents = {
        "a": given,
        "b": Partition(swapped(given.train, train_labels), given.test),
        "c": Partition(given.train, [*given.test[:-1], given.test[-1][:-1]]),
    }
    for name, partition in contents.items():
        write_partition(partition, tmp_path / f"{name}.npz", train_labels, test_labels, 10)
    (tmp_path / "copy_of_a.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    for name in (*contents, "copy_of_a"):
        build_simulation.cache_clear()
        hashes[name] = simulation_of(tmp_path / f"{name}.npz").hash
    assert hashes["a"] == hashes["copy_of_a"], "the content counts, and not the path"
    assert len({hashes[name] for name in contents}) == 3


def simulation_of(path: Path) -> Simulation:
    """The small simulation with the partition in a file."""
    given = [word for word in SMALL if not word.startswith("partition")]
    return build_simulation(OmegaConf.to_yaml(compose([*given, "partition=from_file", f"partition.path={path}"]), resolve=True))


def test_a_run_that_another_process_writes_is_refused(tmp_path):
    config = compose([f"output={tmp_path}"])
    first = Folder(config, "0123456789ab")
    with pytest.raises(ConfigError, match=r"^output must hold run folders that no other process is writing, got .*, which is in use$"):
        Folder(config, "0123456789ab")
    first.release()
    Folder(config, "0123456789ab").release()


@pytest.mark.parametrize(("words", "name"), [([], "digits"), (["data=mnist"], "mnist"), (["name=mine"], "mine")])
def test_a_run_folder_is_output_name_hash_and_the_name_is_that_of_the_data_unless_it_is_set(tmp_path, words, name):
    folder = Folder(compose([*words, f"output={tmp_path}"]), "0123456789ab")
    folder.release()
    assert folder.path == tmp_path / name / "0123456789ab" and folder.path.is_dir() and not folder.finished
