"""The templates that ``fedkd new`` writes: a module, its yaml, and a test that passes."""

import importlib.util
import keyword
from pathlib import Path

from fedkd.errors import ConfigError
from simulations.overrides import CONF

SMALL = '"engine=local", "num_clients=4", "clients_per_round=2", "local_steps=2", "clients_per_vmap=1", "rounds=1", "progress=false"'

STRATEGY = '''\
"""{title}: a federated strategy of your own."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedkd.errors import require
from fedkd.losses.cross_entropy import cross_entropy
from fedkd.strategy import Strategy
from fedkd.training.batch import Batch
from fedkd.training.functional_model import FunctionalModel
from fedkd.types import Metrics, State


@dataclass(kw_only=True)
class {title}(Strategy):
    """Client: ``CE(z, y) + weight KL(uniform || softmax(embedding))``.

    The term is that of FedMAX (Chen et al., ECML PKDD 2020), as an example. Replace it by your own.

    Args:
        weight: Weight of the term, >= 0. 0 is FedAvg.
    """

    client_summary: ClassVar[str] = "entropy of the embedding"

    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, "weight", "must be >= 0 (0 is FedAvg)", self.weight)

    def loss(self, model: FunctionalModel, batch: Batch, broadcast: State, client_state: State) -> tuple[Tensor, Metrics]:
        """A client's objective: the mean over a batch, and metrics to sum over steps."""
        output = model(batch.x)
        divergence = -output.embedding.log_softmax(-1).mean(-1)  # [B], up to a constant
        return cross_entropy(output.logits, batch.y).mean() + self.weight * divergence.mean(), {{}}
'''

STRATEGY_YAML = """\
# {title}, a strategy of your own: cross-entropy and the entropy of the embedding.
defaults:
  - /protocol@_here_: public_code
  - _self_
_target_: {name}.{title}
_label_: {title}    # the name in reports
weight: 0.1    # >= 0; 0 is FedAvg
"""

STRATEGY_TEST = '''\
"""The strategy {name}: its neutral value is FedAvg, another is not."""

from pathlib import Path

import fedkd

SMALL = ({small})


def losses(output: Path, *overrides: str) -> list[float]:
    (run,) = fedkd.run(*SMALL, *overrides, searchpath=str(Path(__file__).parent), output=str(output))
    return run.metrics["global_test_loss"].tolist()


def test_a_weight_of_zero_is_fedavg(tmp_path: Path) -> None:
    assert losses(tmp_path, "strategy={name}", "strategy.weight=0.0") == losses(tmp_path, "strategy=fedavg")


def test_a_weight_changes_the_result(tmp_path: Path) -> None:
    assert losses(tmp_path, "strategy={name}", "strategy.weight=1.0") != losses(tmp_path, "strategy=fedavg")
'''

MODEL = '''\
"""{title}: a network of your own."""

from collections.abc import Sequence

from torch import nn

from fedkd.errors import require
from fedkd.models.base import Classifier
from fedkd.types import Task


class {title}(Classifier):
    """Convolutions of stride 2 with ReLU, the mean over the image, a linear head.

    Args:
        task: images of any size.
        widths: channels of each convolution; the last is the size of the embedding.
    """

    def __init__(self, task: Task, *, widths: Sequence[int]) -> None:
        require(len(widths) > 0 and all(width > 0 for width in widths), "widths", "must be one or more positive integers", widths)
        pairs = zip((task.shape[0], *widths), widths)
        stages: list[nn.Module] = [nn.Sequential(nn.Conv2d(before, width, 3, 2, 1), nn.ReLU()) for before, width in pairs]
        embed = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(task, stages, embed, nn.Linear(widths[-1], task.num_classes), widths[-1])
'''

MODEL_YAML = """\
# {title}, a network of your own: strided convolutions and a linear head.
_target_: {name}.{title}
_partial_: true
widths: [16, 32]    # channels of each convolution
"""

MODEL_TEST = '''\
"""The network {name}: shapes, and one round of training."""

from pathlib import Path

import torch
from {name} import {title}

import fedkd
from fedkd.types import Task

SMALL = ({small})


def test_shapes() -> None:
    output = {title}(Task("images", (3, 16, 16), 10), widths=(4, 8))(torch.zeros(2, 3, 16, 16))
    assert output.logits.shape == (2, 10) and output.embedding.shape == (2, 8)
    assert [stage.shape[1] for stage in output.stages] == [4, 8]


def test_it_trains(tmp_path: Path) -> None:
    (run,) = fedkd.run(*SMALL, "strategy=fedavg", "model={name}", searchpath=str(Path(__file__).parent), output=str(tmp_path))
    assert run.finished
    assert type(run.model()).__name__ == "{title}"
'''

PARTITION = '''\
"""{title}: who holds which examples, by a rule of your own."""

from dataclasses import dataclass

import numpy as np

from fedkd.errors import require
from fedkd.partition.common import check_arguments, local_test_shards
from fedkd.types import Partition


@dataclass(frozen=True, kw_only=True)
class {title}:
    """Examples sorted by label, of which each client holds one block, but for a part that is dealt out at random.

    Args:
        mixed: Part of the examples that is dealt out at random, in [0, 1]. 1 is IID.
    """

    mixed: float

    def __post_init__(self) -> None:
        require(0 <= self.mixed <= 1, "mixed", "must be in 0..1 (1 is IID)", self.mixed)

    def __call__(self, train_labels: np.ndarray, test_labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> Partition:
        """Labels [N] and [M] of the training and test examples, the number of clients K, and the randomness."""
        check_arguments(train_labels, test_labels, num_clients)
        order = rng.permutation(len(train_labels))
        cut = round(self.mixed * len(order))
        dealt, rest = order[:cut], order[cut:][np.argsort(train_labels[order[cut:]], kind="stable")]
        pieces = zip(np.array_split(dealt, num_clients), np.array_split(rest[::-1], num_clients))
        train = [np.sort(np.concatenate(piece)).astype(np.int64) for piece in pieces]
        return Partition(train, local_test_shards(train, train_labels, test_labels))
'''

PARTITION_YAML = """\
# {title}, a partition of your own: blocks of the examples sorted by label.
_target_: {name}.{title}
mixed: 0.2    # part of the examples that is dealt out at random; 1 is IID
"""

PARTITION_TEST = '''\
"""The partition {name}: every training example has one client, and the rule shows."""

from pathlib import Path

import numpy as np
from {name} import {title}

import fedkd

LABELS = np.repeat(np.arange(10), 60)


def split(mixed: float) -> list[np.ndarray]:
    return {title}(mixed=mixed)(LABELS, LABELS, 10, np.random.default_rng(0)).train


def test_every_example_has_one_client() -> None:
    assert all(sorted(np.concatenate(split(mixed))) == list(range(len(LABELS))) for mixed in (0.0, 0.5, 1.0))


def test_blocks_hold_few_classes() -> None:
    assert all(len(np.unique(LABELS[one])) == 1 for one in split(0.0))
    assert all(len(np.unique(LABELS[one])) > 5 for one in split(1.0))


def test_it_is_an_option() -> None:
    config = fedkd.compose("partition={name}", searchpath=str(Path(__file__).parent))
    assert config.partition._target_ == "{name}.{title}"
'''

DATA = '''\
"""{title}: a data set of your own."""

from dataclasses import dataclass

import numpy as np
import torch

from fedkd.data.cache import content_digest
from fedkd.errors import require
from fedkd.types import Examples, Task


@dataclass(frozen=True, kw_only=True)
class {title}:
    """Noisy copies of one random image per class, as an example: read your own images here.

    Args:
        num_classes: C, >= 2.
        per_class: training examples of each class, >= 1; there are a quarter as many test examples.
        size: height and width in pixels.
        noise: >= 0, standard deviation of the noise in 0..255.
    """

    num_classes: int
    per_class: int
    size: int
    noise: float

    def __post_init__(self) -> None:
        require(self.num_classes >= 2, "num_classes", "must be >= 2", self.num_classes)
        require(self.per_class >= 4, "per_class", "must be >= 4", self.per_class)

    def __call__(self) -> tuple[Task, Examples, Examples]:
        """Task, training and test examples: images are bytes [N, channels, height, width], labels integers [N]."""
        rng = np.random.default_rng(0)
        means = rng.uniform(0, 255, (self.num_classes, 1, self.size, self.size))
        parts = []
        for count in (self.per_class, self.per_class // 4):
            y = np.repeat(np.arange(self.num_classes), count).astype(np.int64)
            x = np.clip(means[y] + self.noise * rng.standard_normal((len(y), *means.shape[1:])), 0, 255).astype(np.uint8)
            parts.append((x, y))
        digest = content_digest({{f"{{key}}{{i}}": value for i, part in enumerate(parts) for key, value in zip("xy", part)}})
        train, test = (Examples(torch.from_numpy(x), torch.from_numpy(y), 255.0, (0.5,), (0.5,), digest) for x, y in parts)
        return Task("{name}", (1, self.size, self.size), self.num_classes, (), train.mean, train.std), train, test
'''

DATA_YAML = """\
# {title}, a data set of your own: noisy copies of one random image per class.
_target_: {name}.{title}
num_classes: 5
per_class: 100    # training examples of each class
size: 8           # height and width in pixels
noise: 60.0       # standard deviation, in 0..255
"""

DATA_TEST = '''\
"""The data set {name}: shapes, the same content every time, and one round of training."""

from pathlib import Path

import torch
from {name} import {title}

import fedkd

SMALL = ({small})


def test_shapes_and_labels() -> None:
    task, train, test = {title}(num_classes=3, per_class=8, size=6, noise=1.0)()
    again = {title}(num_classes=3, per_class=8, size=6, noise=1.0)()[1]
    assert train.x.shape == (24, 1, 6, 6) and test.x.shape == (6, 1, 6, 6) and task.num_classes == 3
    assert set(train.y.tolist()) == set(test.y.tolist()) == {{0, 1, 2}}
    assert torch.equal(train.x, again.x) and train.digest == again.digest


def test_it_trains(tmp_path: Path) -> None:
    (run,) = fedkd.run(*SMALL, "strategy=fedavg", "data={name}", searchpath=str(Path(__file__).parent), output=str(tmp_path))
    assert run.finished
'''

DISTILLER = '''\
"""{title}: a distillation method of your own."""

from dataclasses import dataclass
from typing import ClassVar

from fedkd.distillation.methods.base import Distiller, StepInput
from fedkd.errors import require
from fedkd.types import Metrics


@dataclass(kw_only=True)
class {title}(Distiller):
    """``ce CE(z_s, y) + weight mean_c (z_s - z_t)^2``: the logits are regressed, as an example.

    Args:
        weight: Weight of the squared error of the logits, >= 0.
    """

    needs_teacher: ClassVar[bool] = True
    tuned_weight: ClassVar[str | None] = "weight"

    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, "weight", "must be >= 0 (0 switches the term off)", self.weight)

    def terms(self, step: StepInput) -> Metrics:
        """The terms beside the cross-entropy, weighted already."""
        return {{"regression": self.weight * (step.student.logits - step.teacher.logits).square().mean()}}
'''

DISTILLER_YAML = """\
# {title}, a distillation method of your own: regression of the teacher's logits.
_target_: {name}.{title}
ce: 1.0
weight: 0.1    # >= 0, of the squared error of the logits
"""

DISTILLER_TEST = '''\
"""The distillation method {name}: its term, and one epoch of training."""

from pathlib import Path

import fedkd

SMALL = ("teacher=mlp", "student=mlp", "student.widths=[16]", "epochs=1", "num_train_images=100", "export=false", "progress=false")


def losses(output: Path, *overrides: str) -> list[float]:
    (run,) = fedkd.distill(None, *SMALL, "distiller={name}", *overrides, searchpath=str(Path(__file__).parent), output=str(output))
    return run.metrics["test_loss"].tolist()


def test_the_weight_changes_the_student(tmp_path: Path) -> None:
    assert losses(tmp_path, "distiller.weight=0.0") != losses(tmp_path, "distiller.weight=1.0")
'''

TEMPLATES = {
    "strategy": (STRATEGY, STRATEGY_YAML, STRATEGY_TEST), "model": (MODEL, MODEL_YAML, MODEL_TEST),
    "partition": (PARTITION, PARTITION_YAML, PARTITION_TEST), "data": (DATA, DATA_YAML, DATA_TEST),
    "distiller": (DISTILLER, DISTILLER_YAML, DISTILLER_TEST),
}  # fmt: skip
"""By kind: the module, the yaml, the test."""


def write(kind: str, path: Path) -> list[Path]:
    """Write a template; returns the files.

    Args:
        kind: of :data:`TEMPLATES`.
        path: ``<folder>/<name>``; the folder is made where it is missing.

    Raises:
        ConfigError: the name is taken or cannot be a module's, or a file exists.
    """
    name, folder = path.name, path.parent
    _check_name(kind, name, folder)
    files = [folder / f"{name}.py", folder / "conf" / kind / f"{name}.yaml", folder / f"test_{name}.py"]
    if there := [str(file) for file in files if file.exists()]:
        raise ConfigError(f"name must be new, got {name!r}, of which {there[0]} exists; choose another, or remove the file")
    title = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    for file, text in zip(files, TEMPLATES[kind]):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(name=name, title=title, small=SMALL), encoding="utf-8")
    return files


def _check_name(kind: str, name: str, folder: Path) -> None:
    """Refuse names that Python or Hydra would resolve to something else."""
    if folder == Path() or not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or name.startswith("_"):
        raise ConfigError(
            f"name must be <folder>/<name> in small letters, digits and underscores, got {str(folder / name)!r}; try mylab/fedmax"
        )
    if (CONF / kind / f"{name}.yaml").exists():
        raise ConfigError(f"name must not be that of an option of fedkd's, got {name!r}; 'fedkd describe {kind}' lists them")
    if (found := importlib.util.find_spec(name)) is not None and found.origin != str((folder / f"{name}.py").absolute()):
        raise ConfigError(f"name must not be that of an installed module, which Python would import instead, got {name!r}; choose another")
