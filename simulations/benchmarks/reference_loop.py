"""The training loop of public federated-learning code in plain PyTorch, one client after the other, in a process of its own.

It shares only networks, data, and configuration with the engines.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fedkd.models.base import Classifier
from fedkd.seed import Seed
from fedkd.types import Examples, Task


def floats(data: Examples) -> TensorDataset:
    """All images as floats, once, and their labels."""
    return TensorDataset(data.images(torch.arange(len(data))), data.y)


def score(model: nn.Module, loader: DataLoader) -> tuple[int, int]:
    """How many examples there are, and how many ``model`` gets right; the loss is computed too, as public code does."""
    examples, correct, loss = 0, 0, 0.0
    for x, y in loader:
        logits = model(x).logits
        loss += F.cross_entropy(logits, y)
        correct += (logits.argmax(dim=1) == y).sum().item()
        examples += len(y)
    return examples, correct


class NaiveClient:
    """A model, a DataLoader over floats and an optimizer of its own, all built once; batches go on from round to round.

    Args:
        model: copied.
        data: training examples; they become floats here.
        batch_size: or all there are, if they are fewer.
        lr: of plain SGD.
        seed: of the order of batches.
        test: the own test shard, read as one batch.
    """

    def __init__(self, model: Classifier, data: Examples, batch_size: int, lr: float, seed: Seed, test: Examples | None = None) -> None:
        self.model, self.size, self.lr, self.last_round = copy.deepcopy(model), len(data), lr, 0
        self.loader = DataLoader(floats(data), min(batch_size, len(data)), shuffle=True, drop_last=True, generator=seed.torch())
        self.batches = iter(self.loader)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, foreach=False)
        self.test = DataLoader(floats(test), max(1, len(test)), generator=seed.torch()) if test is not None else None
        self.counts = np.ones(model.task.num_classes)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """The next batch, of a fresh order where the last one has ended: images [B, channels, height, width], labels [B]."""
        try:
            return next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            return next(self.batches)

    def step(self, loss: Tensor) -> None:
        """One step of the optimizer."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def score(self) -> tuple[int, int]:
        """How many examples of the own test shard there are, and how many the model gets right."""
        self.model.eval()
        return score(self.model, self.test)


class NaiveFedAvg:
    """Federated averaging of any network by Python loops, NCHW.

    Args:
        model: as the run begins.
        clients: each with a copy of it.
        local_steps: of a client in a round.
    """

    def __init__(self, model: Classifier, clients: list[NaiveClient], local_steps: int) -> None:
        self.model, self.clients, self.local_steps = copy.deepcopy(model), clients, local_steps

    def broadcast(self) -> None:
        """The parameters, not the BatchNorm statistics, to every client there is."""
        for client in self.clients:
            for mine, new in zip(client.model.parameters(), self.model.parameters()):
                mine.data = new.data.clone()

    def local_fedavg(self, clients: Sequence[int]) -> None:
        """Cross-entropy alone, one client after the other."""
        for client in (self.clients[number] for number in clients):
            client.model.train()
            for _ in range(self.local_steps):
                x, y = client.next_batch()
                client.step(F.cross_entropy(client.model(x).logits, y))

    def aggregate(self, clients: Sequence[int]) -> None:
        """The mean of the clients' parameters, weighted by their numbers of training examples."""
        chosen = [self.clients[number] for number in clients]
        total = sum(client.size for client in chosen)
        for parameter in self.model.parameters():
            parameter.data = torch.zeros_like(parameter.data)
        for client in chosen:
            for parameter, theirs in zip(self.model.parameters(), client.model.parameters()):
                parameter.data = parameter.data + theirs.data.clone() * (client.size / total)


PIXELS = Task("pixels", (3, 32, 32), 100)

PIXELS_PER_CLIENT = 512


def pixels(seed: Seed, num_examples: int, task: Task = PIXELS) -> Examples:
    """Seeded random bytes in the shape of CIFAR-100, labels too: no files, nothing to learn, the same work."""
    random = seed.torch()
    x = torch.randint(256, (num_examples, *task.shape), dtype=torch.uint8, generator=random)
    y = torch.randint(task.num_classes, (num_examples,), generator=random)
    channels = task.shape[0]
    return Examples(x, y, 255.0, (0.5,) * channels, (0.25,) * channels)
