"""FedGen as the paper's public code computes a round (Zhu et al., ICML 2021), in plain PyTorch."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from simulations.benchmarks.reference_loop import ReferenceClient, ReferenceFedAvg, count_correct, to_float_dataset
from simulations.setup.simulation import Simulation
from strategies.fedgen import FedGen


def diversity_loss(noise: Tensor, z: Tensor) -> Tensor:  # [B, Z], [B, D] -> []
    """FedGen's diversity term. It is small if different noise gives different embeddings."""
    return (-(z[None] - z[:, None]).abs().mean(2) * (noise[None] - noise[:, None]).pow(2).mean(2)).mean().exp()


class ReferenceFedGen(ReferenceFedAvg):
    """FedGen with the hyperparameters of ``strategy=fedgen``.

    Costs of the public code that are kept: gradients flow into the frozen generator and into the heads, labels are counted batch by
    batch, losses weight labels by NumPy arrays, and evaluations compute gradients. Left out, in favor of the reference: the student's
    loss, whose coefficient is 0, and a second copy of every model broadcast. Added: the global test, with the mean BatchNorm statistics
    of the clients that have trained.

    Args:
        simulation: data, partition, network, hyperparameters and seed.
    """

    def __init__(self, simulation: Simulation) -> None:
        assert isinstance(simulation.strategy, FedGen), "the reference needs strategy=fedgen"
        self.simulation, self.strategy = simulation, simulation.strategy
        self.seed, config = simulation.seed / "naive", simulation.config
        clients = []
        for number, (train, test) in enumerate(zip(simulation.partition.train, simulation.partition.test)):
            data, local_test = simulation.train.subset(train), simulation.global_test.subset(test)
            lr, seed = config.optimizer.lr, self.seed / number
            clients.append(ReferenceClient(simulation.model, data, config.batch_size, lr, seed, local_test))
        super().__init__(simulation.model, clients, config.local_steps)
        dataset = to_float_dataset(simulation.global_test)
        self.global_test = DataLoader(dataset, config.evaluation.batch_size, generator=self.seed.torch())
        self.random = (self.seed / "draws").torch()
        with (self.seed / "generator").globally():
            self.generator = self.strategy.generator(simulation.task, simulation.model.embedding_size)
        self.noise_size = cast(int, self.generator.noise_size)
        self.optimizer = self.strategy.generator_optimizer(self.generator.parameters())
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, self.strategy.generator_lr_decay)

    def generate(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise [B, Z] and generated embeddings [B, D] for labels [B]."""
        noise = torch.rand(len(y), self.noise_size, generator=self.random)
        return noise, self.generator(noise, y)

    def train_clients(self, clients: Sequence[int], server_round: int = 2) -> None:
        """Local training of ``clients``. In round 1 the generator is not used."""
        self.generator.eval()
        for client in (self.clients[number] for number in clients):
            client.counts = np.ones(self.simulation.task.num_classes)
            for group in client.optimizer.param_groups:
                group["lr"] = client.lr * self.strategy.lr_decay ** max(client.last_round - 1, 0)
            client.model.train()
            limit = self.local_steps if self.strategy.num_regularized_steps is None else self.strategy.num_regularized_steps
            for step in range(self.local_steps):
                client.step(self.local_loss(client, server_round, regularized=server_round > 1 and step < limit))
            client.last_round = server_round

    def local_loss(self, client: ReferenceClient, server_round: int, regularized: bool) -> Tensor:
        """The loss of one step on the client's next batch, with the generator's terms if ``regularized``."""
        strategy, (x, y) = self.strategy, client.next_batch()
        for label, count in zip(*(values.numpy() for values in torch.unique(y, return_counts=True))):
            client.counts[int(label)] += count
        logits = F.log_softmax(client.model(x).logits, dim=1)
        loss = F.nll_loss(logits, y)
        if not regularized:
            return loss
        target = F.softmax(client.model.head(self.generate(y)[1]), dim=1).clone().detach()
        latent = strategy.coefficient(strategy.beta, server_round) * F.kl_div(logits, target, reduction="batchmean")
        labels = torch.randint(self.simulation.task.num_classes, (strategy.client_batch_size,), generator=self.random)
        generated = F.cross_entropy(client.model.head(self.generate(labels)[1]), labels)
        share = strategy.client_batch_size / self.simulation.config.batch_size
        return loss + share * strategy.coefficient(strategy.alpha, server_round) * generated + latent

    def train_generator(self, clients: Sequence[int]) -> None:
        """Train the generator for one round with the heads of ``clients``."""
        self.generator_steps(clients, self.strategy.generator_steps)
        self.schedule.step()

    def generator_steps(self, clients: Sequence[int], steps: int) -> None:
        """``steps`` of the generator with a loop over the heads of ``clients``. A client may be listed several times."""
        chosen = [self.clients[number] for number in clients]
        counts = np.stack([client.counts for client in chosen], axis=1)  # [C, K]
        weights, labels = counts / counts.sum(1, keepdims=True), torch.tensor(np.flatnonzero(counts.max(1) > 1))
        labels = labels if len(labels) else torch.arange(len(counts))  # no client has trained yet
        self.generator.train()
        for _ in range(steps):
            self.optimizer.zero_grad()
            y = labels[torch.randint(len(labels), (self.strategy.generator_batch_size,), generator=self.random)]
            noise, z = self.generate(y)
            teacher_loss = torch.zeros(())
            for position, client in enumerate(chosen):
                client.model.eval()
                weight = torch.tensor(weights[y.numpy()][:, position].reshape(-1, 1), dtype=torch.float32)
                losses = F.cross_entropy(client.model.head(z), y, reduction="none") * weight  # [B, B], as in the public code
                teacher_loss = teacher_loss + losses.mean()
            (teacher_loss + self.strategy.eta * diversity_loss(noise, z)).backward()
            self.optimizer.step()

    def evaluate(self) -> tuple[float, float]:
        """Local test accuracy and global test accuracy, 0..1."""
        return self.evaluate_local(), self.evaluate_global()

    def evaluate_local(self) -> float:
        """Accuracy over the local test sets of all clients, each with its own BatchNorm statistics."""
        num_examples, num_correct = zip(*(client.count_correct() for client in self.clients))
        return sum(num_correct) / sum(num_examples)

    def evaluate_global(self) -> float:
        """Accuracy on the global test set."""
        trained = [client for client in self.clients if client.last_round > 0] or self.clients
        total = sum(client.size for client in trained)
        for name, buffer in self.model.named_buffers():
            if buffer.is_floating_point():
                weighted = (client.model.get_buffer(name) * (client.size / total) for client in trained)
                buffer.data = sum(weighted, start=torch.zeros_like(buffer))
        with torch.no_grad():
            num_examples, num_correct = count_correct(self.model.eval(), self.global_test)
        return num_correct / num_examples

    def run_round(self, server_round: int) -> tuple[float, float]:
        """A whole round of the clients that fedkd would sample. Returns the values of :meth:`evaluate`."""
        config, rng = self.simulation.config, (self.simulation.seed / "round" / server_round / "cohort").numpy()
        clients = sorted(rng.choice(config.num_clients, config.clients_per_round, replace=False).tolist())
        self.train_clients(clients, server_round)
        self.train_generator(clients)
        self.aggregate(clients)
        self.broadcast()
        return self.evaluate()
