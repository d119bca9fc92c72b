"""How much faster than the loop that public code runs: ``<key> <value>``, one line a figure, ratios of side-by-side times.

``python -m simulations.benchmarks.engine data=mnist data.root=<folder>`` (further overrides as for ``simulations.run``): one
process, one thread, warm, medians over alternating repetitions.

``local_step``: the local training of ten FedGen clients, 20 steps of batches of 32, as one cohort, against a model, a DataLoader
and an optimizer of its own for each client, one client after the other, gradients flowing into the frozen generator, as FedGen's
public code has it.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, TensorDataset

from fedkd.bound import load
from simulations.run import compose
from simulations.world import World, world

REPETITIONS, CLIENTS = 9, 10


def naive(home: World, shared: dict) -> None:
    """Ten clients of FedGen as its public code trains them."""
    strategy, classes, batch = home.strategy, home.task.num_classes, home.config.batch_size
    generator = strategy.generator(home.task, home.model.embedding_size).eval()
    load(generator, shared["generator"])
    random = (home.seed / "naive").torch()

    def noise(y: torch.Tensor) -> torch.Tensor:
        return torch.rand(len(y), generator.noise_size, generator=random)

    for client in range(CLIENTS):
        site, model = home.client(client, 2), copy.deepcopy(home.model).train()
        data = TensorDataset(site.data.images(torch.arange(len(site.data))), site.data.y)
        batches = iter(loader := DataLoader(data, min(batch, len(data)), shuffle=True, drop_last=True, generator=random))
        optimizer = torch.optim.SGD(model.parameters(), lr=site.lr, foreach=False)
        for _ in range(site.num_steps):
            try:
                x, y = next(batches)
            except StopIteration:
                batches = iter(loader)
                x, y = next(batches)
            logits = model(x).logits
            latent = F.softmax(model.head(generator(noise(y), y)), dim=1).detach()
            drawn = torch.randint(classes, (strategy.client_batch_size,), generator=random)
            generated = model.head(generator(noise(drawn), drawn))
            kl = F.kl_div(F.log_softmax(logits, dim=1), latent, reduction="batchmean")
            loss = F.cross_entropy(logits, y) + 10.0 * F.cross_entropy(generated, drawn) + 10.0 * kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main(overrides: list[str]) -> None:
    """Print all figures."""
    home = world(OmegaConf.to_yaml(compose(["strategy=fedgen", "engine=local", *overrides]), resolve=True))
    strategy = home.strategy
    state = strategy.init(home.federation().server)
    shared = {part: state[part] for part in strategy.shares}

    def cohort() -> None:
        strategy.train_cohort([home.client(client, 2) for client in range(CLIENTS)], shared, [None] * CLIENTS, 2)

    loop = lambda: naive(home, shared)
    for work in (cohort, loop):
        work()
    times = [(seconds(loop), seconds(cohort)) for _ in range(REPETITIONS)]
    print(f"# one thread, {CLIENTS} clients, batch {home.config.batch_size}, medians of {REPETITIONS} alternating: {' '.join(overrides)}")
    print(f"local_step {statistics.median(slow / fast for slow, fast in times):.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
