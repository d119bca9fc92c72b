"""``_target_`` reaches only fedkd's own parts, those of its libraries, and modules that the user names."""

import pytest
import torch
from omegaconf import OmegaConf

from fedkd.config.build import build
from fedkd.config.targets import resolve_target, targets
from fedkd.config.validation import check_part
from fedkd.errors import ConfigError
from fedkd.partition.iid import IID

FORBIDDEN = [
    "os.makedirs", "os._exit", "builtins.open", "builtins.eval", "subprocess.run", "hydra.utils.get_method", "torch.save", "torch.hub.load",
    "fedkd.files.write_atomically", "fedkd.checkpoint.write_checkpoint", "simulations.process.configure_process", "numpy.load",
    "fedkd.data.cache.os.makedirs", "torch.optim.sgd.torch.save", "flwr_datasets_of_mine.partitioner.X", "torch.optimus.SGD",
]  # fmt: skip
"""Paths outside, and paths through an allowed module to one that is not."""


@pytest.mark.parametrize("path", FORBIDDEN)
def test_other_code_is_refused_by_name(path):
    with pytest.raises(ConfigError, match=rf"^data\._target_ must be a part of fedkd.*got '{path}'.*allow_targets=\["):
        resolve_target(path, "data._target_", [])


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("place", ["data", "nested", "in a list"])
def test_nothing_is_called_at_any_depth(place, partial, tmp_path):
    call = {"_target_": "os.makedirs", "_partial_": partial, "name": str(tmp_path / "made")}
    node = {
        "data": call,
        "nested": {"_target_": "fedkd.partition.iid.IID", "x": {"y": call}},
        "in a list": {"_target_": "fedkd.partition.iid.IID", "x": [1, call]},
    }[place]
    with pytest.raises(ConfigError, match=r"os\.makedirs"):
        build(OmegaConf.create({"data": node}), "data")
    with pytest.raises(ConfigError):
        check_part(node, "data")
    assert not list(tmp_path.iterdir())


def test_a_module_that_is_not_allowed_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "never_imported.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"allow_targets=\[never_imported\]"):
        resolve_target("never_imported.Mine", "strategy._target_", [])


def test_named_modules_and_shipped_ones_are_reached():
    assert resolve_target("collections.OrderedDict", "data._target_", ["collections"]).__name__ == "OrderedDict"
    assert resolve_target("fedkd.partition.iid.IID", "partition._target_", []) is IID
    assert resolve_target("torch.optim.SGD", "optimizer._target_", []) is torch.optim.SGD
    with pytest.raises(ConfigError):
        resolve_target("collections2.OrderedDict", "data._target_", ["collections"])


@pytest.mark.parametrize("value", [None, 3, "", ["os"], {}])
def test_a_target_is_a_text(value):
    with pytest.raises(ConfigError, match=r"^data\._target_ must name a class or function"):
        resolve_target(value, "data._target_", ["os"])


def test_all_targets_are_found():
    found = dict(targets({"a": {"_target_": "x", "b": [{"_target_": "y"}]}, "c": 1}, "data"))
    assert found == {"data.a._target_": "x", "data.a.b.0._target_": "y"}
