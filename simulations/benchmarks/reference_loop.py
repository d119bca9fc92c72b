"""The training loop of public federated-learning code in plain PyTorch: clients train sequentially, with DataLoaders over floats.

It shares only networks, data and configuration with fedkd's engines.
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

RANDOM_TASK = Task("pixels", (3, 32, 32), 100)
"""The shape of CIFAR-100."""

EXAMPLES_PER_CLIENT = 512
"""Random images of each client."""


def to_float_dataset(data: Examples) -> TensorDataset:
    """All images as normalized floats, and their labels."""
    return TensorDataset(data.images(torch.arange(len(data))), data.y)


def count_correct(model: nn.Module, loader: DataLoader) -> tuple[int, int]:
    """The numbers of examples and of correct predictions. The loss is computed and discarded, as public code does."""
    num_examples, num_correct, loss = 0, 0, torch.zeros(())
    for x, y in loader:
        logits = model(x).logits
        loss = loss + F.cross_entropy(logits, y)
        num_correct += int((logits.argmax(dim=1) == y).sum().item())
        num_examples += len(y)
    return num_examples, num_correct


class ReferenceClient:
    """A client with a model, a DataLoader and an optimizer of its own. Batches continue from round to round.

    Args:
        model: copied.
        data: training examples.
        batch_size: reduced to the number of examples if there are fewer.
        lr: learning rate of plain SGD.
        seed: seed of the order of batches.
        test: local test set, read as one batch. None if the client is never evaluated.
    """

    def __init__(self, model: Classifier, data: Examples, batch_size: int, lr: float, seed: Seed, test: Examples | None = None) -> None:
        self.model, self.size, self.lr, self.last_round = copy.deepcopy(model), len(data), lr, 0
        dataset = to_float_dataset(data)
        self.loader = DataLoader(dataset, min(batch_size, len(data)), shuffle=True, drop_last=True, generator=seed.torch())
        self.batches = iter(self.loader)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, foreach=False)
        self.test = None if test is None else DataLoader(to_float_dataset(test), max(1, len(test)), generator=seed.torch())
        self.counts = np.ones(model.task.num_classes)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Images [B, channels, height, width] and labels [B]. A new pass in a new order starts after the last batch."""
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

    def count_correct(self) -> tuple[int, int]:
        """The numbers of examples and of correct predictions of the local test set."""
        assert self.test is not None, "the client has a local test set"
        self.model.eval()
        return count_correct(self.model, self.test)


class ReferenceFedAvg:
    """Federated averaging by Python loops.

    Args:
        model: the initial model.
        clients: all clients of the federation.
        local_steps: steps of a client in a round.
    """

    def __init__(self, model: Classifier, clients: list[ReferenceClient], local_steps: int) -> None:
        self.model, self.clients, self.local_steps = copy.deepcopy(model), clients, local_steps

    def broadcast(self) -> None:
        """Copy the parameters, but not the BatchNorm statistics, to all clients."""
        for client in self.clients:
            for own, new in zip(client.model.parameters(), self.model.parameters()):
                own.data = new.data.clone()

    def train_fedavg(self, clients: Sequence[int]) -> None:
        """Local training of ``clients`` with cross-entropy alone."""
        for client in (self.clients[number] for number in clients):
            client.model.train()
            for _ in range(self.local_steps):
                x, y = client.next_batch()
                client.step(F.cross_entropy(client.model(x).logits, y))

    def aggregate(self, clients: Sequence[int]) -> None:
        """Average the parameters of ``clients``, weighted by their numbers of training examples."""
        chosen = [self.clients[number] for number in clients]
        total = sum(client.size for client in chosen)
        for parameter in self.model.parameters():
            parameter.data = torch.zeros_like(parameter.data)
        for client in chosen:
            for parameter, local in zip(self.model.parameters(), client.model.parameters()):
                parameter.data = parameter.data + local.data.clone() * (client.size / total)


def random_examples(seed: Seed, num_examples: int, task: Task = RANDOM_TASK) -> Examples:
    """Random bytes and random labels in the shape of ``task``: no files are needed and training has the same cost."""
    random = seed.torch()
    x = torch.randint(256, (num_examples, *task.shape), dtype=torch.uint8, generator=random)
    y = torch.randint(task.num_classes, (num_examples,), generator=random)
    channels = task.shape[0]
    return Examples(x, y, 255.0, (0.5,) * channels, (0.25,) * channels)
