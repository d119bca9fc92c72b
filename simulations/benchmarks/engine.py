"""How much faster than what its users would pick instead: ``<key> <value>``, one line a figure, ratios of times side by side.

``python -m simulations.benchmarks.engine [keys] data=mnist data.root=<folder>`` (further overrides as for ``simulations.run``)
prints all figures or those named. Lines that begin with ``#`` say what was done and how long it took. Both sides do the same work in
turn, warm, one thread a process; a figure is the median of the ratios of at least five pairs.

``local_step``, ``local_step_compiled``: FedGen's local training of ten clients, in chunks of ten, against the public code's loop.
``round_vs_loop``: whole FedGen rounds (local training, aggregation, generator, both evaluations) on two actors, against that loop.
``round_vs_flower``: the same rounds against Flower's own simulation runtime, one node a client.
``thousand_vs_flower``: a round of a thousand clients that send a kilobyte back and do nothing, against the same on Flower's runtime.
``overhead``: the share of a training round that is neither the slowest actor's training nor the server's computing.
``scale_1000``, ``scale_10000``: the cost of a client's step in a training round of 100 of 1,000 and 1,000 of 10,000 clients, over that of
10 of 20.
``resnet_lean``, ``resnet_auto``: ResNet-8 on images of CIFAR's shape (random pixels): one by one against the public code's way of
training, and what ``clients_per_vmap=auto`` chooses against one by one.
``generator_10``, ``generator_100``: the generator's steps from ten and a hundred heads, against the loop over heads.
"""

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from statistics import mean

import torch

from fedkd.training.functional_model import snapshot, submodule_tensors
from simulations.benchmarks import workloads
from simulations.benchmarks.flower_runtime import flower_seconds
from simulations.benchmarks.reference_process import Opponent
from simulations.engine.ray_cluster import start_ray
from simulations.engine.vmap_tuning import choose_clients_per_vmap
from simulations.process import configure_process

PAIRS = 7

CHUNK = 5
"""Clients that an actor trains at once where ten are shared between two."""


IN_A_ROW = 5
"""Rounds of a repetition: whatever belongs to a round, its evaluation above all, may go on while the next begins."""


Figures = Iterator[tuple[str, float]]


def timed(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def ratio(key: str, theirs: Callable[[], float], ours: Callable[[], float], pairs: int = PAIRS, unit: float = 1e3) -> float:
    """The median of ``theirs / ours``, each in seconds, taken in turn; what they took is printed in ``unit`` a second."""
    theirs(), ours()
    times = [(theirs(), ours()) for _ in range(pairs)]
    slow, fast = (statistics.median(column) * unit for column in zip(*times))
    ratios = sorted(one / other for one, other in times)
    print(f"# {key}: {slow:.4g} against {fast:.4g}; {pairs} pairs, ratios {ratios[0]:.2f} to {ratios[-1]:.2f}", flush=True)
    return statistics.median(ratios)


def local_steps(overrides: list[str]) -> Figures:
    """One worker, one thread, ten clients, 20 steps of batches of 32; milliseconds per client and step."""
    opponent = Opponent(overrides)
    for key, compiled in (("local_step", False), ("local_step_compiled", True)):
        train = workloads.local_training(overrides, 10, compiled)
        for _ in range(7):  # until steps are replayed, or compiled
            train()
        yield key, ratio(key, lambda: opponent.seconds("local 10"), lambda work=train: timed(work), unit=1e3 / 200)
    opponent.close()


def rounds(overrides: list[str]) -> Figures:
    """Whole rounds on two actors; milliseconds a round."""
    opponent = Opponent(overrides)
    with workloads.federation([*overrides, f"clients_per_vmap={CHUNK}"], workers=2) as ours:
        ours.rounds(9)
        mine = lambda: timed(lambda: ours.rounds(IN_A_ROW)) / IN_A_ROW
        yield "round_vs_loop", ratio("round_vs_loop", lambda: mean(opponent.seconds("round") for _ in range(IN_A_ROW)), mine, pairs=9)
        opponent.close()
        yield "overhead", overhead(ours)
        flower = flower_seconds("round", overrides)
        yield "round_vs_flower", ratio("round_vs_flower", lambda: mean(islice(flower, IN_A_ROW)), mine)


def overhead(ours: workloads.Federated) -> float:
    """(round - slowest actor's training - the server's computing) / round, the median of 15 training rounds."""
    shares = [1 - (one.training + one.server) / one.wall for one in ours.training_rounds(16)[1:]]
    print(f"# overhead: {min(shares):.3f} to {max(shares):.3f} in {len(shares)} rounds", flush=True)
    return statistics.median(shares)


def thousand(overrides: list[str]) -> Figures:
    """Messages to a thousand clients and their replies; milliseconds a round."""
    flower = flower_seconds("thousand", [])
    with workloads.idle(1000, workers=2) as ours:
        yield "thousand_vs_flower", ratio("thousand_vs_flower", lambda: next(flower), lambda: timed(ours.exchange))


def scales(overrides: list[str]) -> Figures:
    """Training rounds of more clients; microseconds per client and step."""
    for key, population, per_round in (("scale_1000", 1000, 100), ("scale_10000", 10000, 1000)):
        yield key, relative_cost(key, population, per_round, overrides)


def resnets(overrides: list[str]) -> Figures:
    """One thread, batches of 64, two steps of two clients; milliseconds per client and step."""
    options = ["model=resnet8", "batch_size=64", "strategy=fedavg"]
    opponent, clients = Opponent(options), 2
    one = workloads.pixels_training(options, clients, 1)
    yield "resnet_lean", ratio("resnet_lean", lambda: opponent.seconds("local_pixels 2 2"), lambda: timed(one), unit=1e3 / 4)
    opponent.close()
    number, milliseconds = choose_clients_per_vmap(workloads.settled([*options, *workloads.pixels_overrides(20)]), 1)
    print(f"# resnet_auto: auto chooses {number} of {milliseconds}", flush=True)
    count = max(number, clients)
    alone, auto = (workloads.pixels_training(options, count, size) for size in (1, number))
    yield "resnet_auto", ratio("resnet_auto", lambda: timed(alone), lambda: timed(auto), unit=1e3 / (2 * count))


def generators(overrides: list[str]) -> Figures:
    """Fifty steps of the server's generator; milliseconds a step."""
    opponent, home = Opponent(overrides), workloads.settled(overrides)
    server, strategy = home.federation().server, home.strategy
    state, random = strategy.init_server(server), (home.seed / "heads").torch()
    for heads in (10, 100):
        each = [
            {k: v + 0.1 * torch.randn(v.shape, generator=random) for k, v in submodule_tensors(snapshot(home.model), "head").items()}
            for _ in range(heads)
        ]
        counts = torch.randint(50, (heads, home.task.num_classes), generator=random)
        work = lambda each=each, counts=counts: strategy.train_generator(server, state, each, counts, 2)
        for _ in range(4):
            work()
        line = f"generator {heads} {strategy.generator_steps}"
        yield f"generator_{heads}", ratio(line, lambda line=line: opponent.seconds(line), lambda work=work: timed(work), unit=1e3 / 50)
    opponent.close()


GROUPS: dict[tuple[str, ...], Callable[[list[str]], Figures]] = {
    ("local_step", "local_step_compiled"): local_steps,
    ("round_vs_loop", "overhead", "round_vs_flower"): rounds,
    ("thousand_vs_flower",): thousand,
    ("scale_1000", "scale_10000"): scales,
    ("resnet_lean", "resnet_auto"): resnets,
    ("generator_10", "generator_100"): generators,
}


def main(arguments: list[str]) -> None:
    """Print the figures that ``arguments`` name, or all."""
    configure_process()
    keys, overrides = [a for a in arguments if "=" not in a], [a for a in arguments if "=" in a]
    known = [key for group in GROUPS for key in group]
    if unknown := [key for key in keys if key not in known]:
        sys.exit(f"error: keys must be among {', '.join(known)}, got {', '.join(unknown)}")
    print(f"# one thread a process, {PAIRS} pairs or more, {' '.join(overrides) or 'default data'}", flush=True)
    for group, figures in GROUPS.items():
        wanted = [key for key in group if not keys or key in keys]
        if wanted:
            for key, value in figures(overrides):
                print(f"{key} {value:.3g}", flush=True)
                if key == wanted[-1]:
                    break


if __name__ == "__main__":
    main(sys.argv[1:])


STEPS, PER_CLIENT, ROUNDS = 20, 64, 5


def relative_cost(key: str, population: int, per_round: int, overrides: list[str]) -> float:
    """Microseconds per client and step of a training round, over those of 10 of 20; both federations take rounds in turn."""
    start_ray(4, None)  # room for both federations' actors, of which one at a time works
    with federation(population, per_round, overrides) as large, federation(20, 10, overrides) as small:
        pairs = []
        for repetition in range(1 + ROUNDS):
            fast = statistics.median(one.wall for one in small.training_rounds(9)[3:]) / (10 * STEPS)
            slow = statistics.median(one.wall for one in large.training_rounds(1)) / (per_round * STEPS)
            if repetition:
                pairs.append((slow, fast))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        actors = max(large.actors_memory()) / 2**20
    ratios = sorted(slow / fast for slow, fast in pairs)
    slow, fast = (statistics.median(column) * 1e6 for column in zip(*pairs))
    print(
        f"# {key}: {slow:.4g} against {fast:.4g} microseconds; {ROUNDS} pairs, ratios {ratios[0]:.2f} to {ratios[-1]:.2f}; "
        f"peak memory {memory:.2f} GiB in the driver, {actors:.2f} GiB in an actor, {os.cpu_count()} cores",
        flush=True,
    )
    return statistics.median(ratios)


def federation(population: int, per_round: int, overrides: list[str]):
    """FedGen, every client with 64 examples drawn from all, two actors, chunks as clients_per_vmap=auto would cut them at most."""
    sizes = [f"num_clients={population}", f"clients_per_round={per_round}", f"local_steps={STEPS}", "clients_per_vmap=5"]
    kept = [o for o in overrides if not o.lstrip("~+").startswith("partition")]
    return workloads.federation([*kept, *workloads.overlapping_overrides(PER_CLIENT), *sizes], workers=2)
