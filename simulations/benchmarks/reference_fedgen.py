"""The opponent's FedGen: a round as the public code of the paper computes it (Zhu et al., ICML 2021), in plain PyTorch."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from simulations.benchmarks.reference_loop import NaiveClient, NaiveFedAvg, floats, score
from simulations.setup.simulation import Simulation


def spread(noise: Tensor, z: Tensor) -> Tensor:  # [B, Z], [B, D] -> []
    """FedGen's diversity term: small where embeddings of unlike noise are unlike."""
    return (-(z[None] - z[:, None]).abs().mean(2) * (noise[None] - noise[:, None]).pow(2).mean(2)).mean().exp()


class NaiveFedGen(NaiveFedAvg):
    """FedGen with the constants of ``strategy=fedgen``.

    Kept as it is there: gradients flow into the frozen generator and into the heads, labels are counted batch by batch, losses
    weigh labels by NumPy arrays, scores are computed with gradients. Left out, in the opponent's favour: the student's loss,
    whose coefficient is 0, and a second copy of every model broadcast. Added: the balanced test, with the mean BatchNorm
    statistics of the clients that have trained.

    Args:
        home: its data, partition, network, constants and seed.
    """

    def __init__(self, home: Simulation) -> None:
        config, self.home, self.strategy = home.config, home, home.strategy
        self.seed = home.seed / "naive"
        shards = enumerate(zip(home.partition.train, home.partition.test))
        data = [(self.seed / number, home.train.subset(train), home.test.subset(test)) for number, (train, test) in shards]
        size, lr = config.batch_size, config.optimizer.lr
        clients = [NaiveClient(home.model, train, size, lr, seed, test) for seed, train, test in data]
        super().__init__(home.model, clients, config.local_steps)
        self.balanced = DataLoader(floats(home.test), config.evaluation.batch_size, generator=self.seed.torch())
        self.random = (self.seed / "draws").torch()
        with (self.seed / "generator").globally():
            self.generator = self.strategy.generator(home.task, home.model.embedding_size)
        self.optimizer = self.strategy.generator_optimizer(self.generator.parameters())
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, self.strategy.generator_lr_decay)

    def generate(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Noise [B, Z] and embeddings [B, D] of labels [B]."""
        noise = torch.rand(len(y), self.generator.noise_size, generator=self.random)
        return noise, self.generator(noise, y)

    def local_training(self, clients: Sequence[int], server_round: int = 2) -> None:
        """The local steps of ``clients``; the first round's are without the generator."""
        self.generator.eval()
        for client in (self.clients[number] for number in clients):
            client.counts = np.ones(self.home.task.num_classes)
            for group in client.optimizer.param_groups:
                group["lr"] = client.lr * self.strategy.lr_decay ** max(client.last_round - 1, 0)
            client.model.train()
            limit = self.local_steps if self.strategy.num_regularized_steps is None else self.strategy.num_regularized_steps
            for step in range(self.local_steps):
                regularised = server_round > 1 and step < limit
                client.step(self.local_loss(client, server_round, regularised))
            client.last_round = server_round

    def local_loss(self, client: NaiveClient, server_round: int, regularised: bool) -> Tensor:
        """The loss of one step, on the client's next batch."""
        strategy, (x, y) = self.strategy, client.next_batch()
        for label, count in zip(*(found.numpy() for found in torch.unique(y, return_counts=True))):
            client.counts[int(label)] += count
        logits = F.log_softmax(client.model(x).logits, dim=1)
        loss = F.nll_loss(logits, y)
        if not regularised:
            return loss
        target = F.softmax(client.model.head(self.generate(y)[1]), dim=1).clone().detach()
        latent = strategy.coefficient(strategy.beta, server_round) * F.kl_div(logits, target, reduction="batchmean")
        drawn = torch.randint(self.home.task.num_classes, (strategy.client_batch_size,), generator=self.random)
        generated = F.cross_entropy(client.model.head(self.generate(drawn)[1]), drawn)
        share = strategy.client_batch_size / self.home.config.batch_size
        return loss + share * strategy.coefficient(strategy.alpha, server_round) * generated + latent

    def train_generator(self, clients: Sequence[int]) -> None:
        """The generator's steps of a round, from the heads of ``clients``."""
        self.generator_steps(clients, self.strategy.generator_steps)
        self.schedule.step()

    def generator_steps(self, clients: Sequence[int], steps: int) -> None:
        """``steps`` of the generator from the heads of ``clients``, looked at one after the other in each; repetitions allowed."""
        chosen = [self.clients[number] for number in clients]
        counts = np.stack([client.counts for client in chosen], axis=1)  # [C, K]
        weights, labels = counts / counts.sum(1, keepdims=True), torch.tensor(np.flatnonzero(counts.max(1) > 1))
        labels = labels if len(labels) else torch.arange(len(counts))  # nobody has trained yet
        self.generator.train()
        for _ in range(steps):
            self.optimizer.zero_grad()
            y = labels[torch.randint(len(labels), (self.strategy.generator_batch_size,), generator=self.random)]
            noise, z = self.generate(y)
            teacher = 0.0
            for position, client in enumerate(chosen):
                client.model.eval()
                weight = torch.tensor(weights[y.numpy()][:, position].reshape(-1, 1), dtype=torch.float32)
                teacher += (F.cross_entropy(client.model.head(z), y, reduction="none") * weight).mean()  # [B, B], as it is there
            (teacher + self.strategy.eta * spread(noise, z)).backward()
            self.optimizer.step()

    def evaluate(self) -> tuple[float, float]:
        """Accuracy, 0..1, over all clients' own test shards, and on the balanced test."""
        return self.evaluate_shards(), self.evaluate_balanced()

    def evaluate_shards(self) -> float:
        """Accuracy over all clients' own test shards, each with its own BatchNorm statistics."""
        examples, correct = zip(*(client.score() for client in self.clients))
        return sum(correct) / sum(examples)

    def evaluate_balanced(self) -> float:
        """Accuracy on the whole test set."""
        trained = [client for client in self.clients if client.last_round > 0] or self.clients
        total = sum(client.size for client in trained)
        for name, buffer in self.model.named_buffers():
            if buffer.is_floating_point():
                buffer.data = sum(client.model.get_buffer(name) * (client.size / total) for client in trained)
        with torch.no_grad():
            examples, correct = score(self.model.eval(), self.balanced)
        return correct / examples

    def round(self, server_round: int) -> tuple[float, float]:
        """A whole round of the clients that the engine would ask; what ``evaluate`` gives."""
        config, rng = self.home.config, (self.home.seed / "round" / server_round / "cohort").numpy()
        clients = sorted(rng.choice(config.num_clients, config.clients_per_round, replace=False).tolist())
        self.local_training(clients, server_round)
        self.train_generator(clients)
        self.aggregate(clients)
        self.broadcast()
        return self.evaluate()
