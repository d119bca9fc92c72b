"""The engine against the loop of FedGen's public code and against Flower's simulation runtime: ratios of times.

``python -m simulations.benchmarks.engine [FIGURE]... data=mnist data.root=FOLDER`` prints the named figures, or all, as
``<figure> <value>``, one per line. Further words ``KEY=VALUE`` are those of ``fedkd run``. Lines that begin with ``#`` state times and
ranges. Both sides do the same work in turn, warm, with one thread per process. A figure is the median of the ratios of at least five pairs.

``local_step``, ``local_step_compiled``: FedGen's local training of ten clients as one program, against the loop of the public code.
``round_vs_loop``: whole FedGen rounds (local training, aggregation, generator, both evaluations) on two actors, against that loop.
``round_vs_flower``: the same rounds against Flower's simulation runtime with one client per node.
``thousand_vs_flower``: a round of a thousand clients that return one kilobyte without any work, against the same on Flower's runtime.
``overhead``: share of a training round that is neither local training on the slowest actor nor computation of the server.
``scale_1000``, ``scale_10000``: time per client step with 100 of 1,000 and with 1,000 of 10,000 clients per round, over that with 10 of 20.
``resnet_lean``: ResNet-8 on random images of CIFAR's shape, sequential training against the loop of the public code.
``resnet_auto``: the same network with ``clients_per_vmap=auto`` against sequential training.
``generator_10``, ``generator_100``: a generator step with 10 and with 100 heads, against the loop over heads.
"""

import os
import resource
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from statistics import mean

import torch

from fedkd.errors import ConfigError
from fedkd.training.functional_model import snapshot, submodule_tensors
from simulations.benchmarks import workloads
from simulations.benchmarks.flower_runtime import flower_seconds
from simulations.benchmarks.measurement import ratio, timed
from simulations.benchmarks.reference_process import ReferenceProcess
from simulations.benchmarks.workloads import RayFederation
from simulations.cli.exit_codes import one_line_errors
from simulations.engine.ray_cluster import start_ray
from simulations.engine.vmap_tuning import choose_clients_per_vmap
from simulations.process import configure_process
from strategies.fedgen import FedGen

CLIENTS_PER_VMAP = 5
"""Clients that an actor trains as one program where two actors share ten clients."""

ROUNDS_IN_A_ROW = 5
"""Rounds of one measurement. Part of a round, above all its evaluation, can overlap with the next round."""

SCALE_STEPS, SCALE_EXAMPLES, SCALE_PAIRS = 20, 64, 5
"""Local steps, examples per client, and pairs of measurements of the figures ``scale``."""

Figures = Iterator[tuple[str, float]]


def local_steps(overrides: list[str]) -> Figures:
    """Ten clients in one worker, 20 steps with batches of 32. Times in ms per client step."""
    reference = ReferenceProcess(overrides)
    for figure, compiled in (("local_step", False), ("local_step_compiled", True)):
        train = workloads.local_training(overrides, 10, compiled)
        for _ in range(7):  # until steps are replayed, or compiled
            train()
        yield figure, ratio(figure, partial(reference.seconds, "local 10"), partial(timed, train), unit=1e3 / 200)
    reference.close()


def rounds(overrides: list[str]) -> Figures:
    """Whole rounds on two actors. Times in ms per round."""
    reference = ReferenceProcess(overrides)
    with workloads.ray_federation([*overrides, f"clients_per_vmap={CLIENTS_PER_VMAP}"], num_workers=2) as federation:
        federation.run_rounds(9)

        def ours() -> float:
            return timed(lambda: federation.run_rounds(ROUNDS_IN_A_ROW)) / ROUNDS_IN_A_ROW

        def loop() -> float:
            return mean(reference.seconds("round") for _ in range(ROUNDS_IN_A_ROW))

        yield "round_vs_loop", ratio("round_vs_loop", loop, ours, pairs=9)
        reference.close()
        yield "overhead", overhead(federation)
        flower = flower_seconds("round", overrides)
        yield "round_vs_flower", ratio("round_vs_flower", lambda: mean(islice(flower, ROUNDS_IN_A_ROW)), ours)


def overhead(federation: RayFederation) -> float:
    """``1 - (slowest actor's local training + server's computation) / round``, the median of 15 training rounds."""
    shares = [1 - (one.training + one.server) / one.wall for one in federation.time_training_rounds(16)[1:]]
    print(f"# overhead: {min(shares):.3f} to {max(shares):.3f} in {len(shares)} rounds", flush=True)
    return statistics.median(shares)


def thousand_clients(overrides: list[str]) -> Figures:
    """Messages to a thousand clients and their replies. Times in ms per round."""
    flower = flower_seconds("thousand", [])
    with workloads.echo_federation(1000, num_workers=2) as federation:
        yield "thousand_vs_flower", ratio("thousand_vs_flower", partial(next, flower), partial(timed, federation.exchange_messages))


def scales(overrides: list[str]) -> Figures:
    """Training rounds with many clients. Times in microseconds per client step."""
    for figure, num_clients, clients_per_round in (("scale_1000", 1000, 100), ("scale_10000", 10000, 1000)):
        yield figure, relative_cost(figure, num_clients, clients_per_round, overrides)


def relative_cost(figure: str, num_clients: int, clients_per_round: int, overrides: list[str]) -> float:
    """Time per client step over that with 10 of 20 clients per round. Both federations run rounds in turn."""
    start_ray(4, None)  # two actors of each federation, of which one at a time computes
    with scale_federation(num_clients, clients_per_round, overrides) as large, scale_federation(20, 10, overrides) as small:
        pairs = []
        for repetition in range(1 + SCALE_PAIRS):
            fast = statistics.median(one.wall for one in small.time_training_rounds(9)[3:]) / (10 * SCALE_STEPS)
            slow = statistics.median(one.wall for one in large.time_training_rounds(1)) / (clients_per_round * SCALE_STEPS)
            if repetition > 0:  # the first one is a warm-up
                pairs.append((slow, fast))
        driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        actor = max(large.actors_memory()) / 2**20
    ratios = sorted(slow / fast for slow, fast in pairs)
    slow, fast = (statistics.median(column) * 1e6 for column in zip(*pairs))
    print(
        f"# {figure}: {slow:.4g} against {fast:.4g} microseconds; {SCALE_PAIRS} pairs, ratios {ratios[0]:.2f} to {ratios[-1]:.2f}; "
        f"peak memory {driver:.2f} GiB in the driver, {actor:.2f} GiB in an actor, {os.cpu_count()} cores",
        flush=True,
    )
    return statistics.median(ratios)


def scale_federation(num_clients: int, clients_per_round: int, overrides: list[str]) -> AbstractContextManager[RayFederation]:
    """FedGen on two actors. Each client holds 64 random examples."""
    sizes = [f"num_clients={num_clients}", f"clients_per_round={clients_per_round}", f"local_steps={SCALE_STEPS}"]
    kept = [word for word in overrides if not word.lstrip("~+").startswith("partition")]
    partition = workloads.overlapping_overrides(SCALE_EXAMPLES)
    return workloads.ray_federation([*kept, *partition, *sizes, f"clients_per_vmap={CLIENTS_PER_VMAP}"], num_workers=2)


def resnets(overrides: list[str]) -> Figures:
    """Two steps of two clients with batches of 64, one thread. Times in ms per client step. ``overrides`` are not used."""
    options, num_clients = ["model=resnet8", "batch_size=64", "strategy=fedavg"], 2
    reference = ReferenceProcess(options)
    train = workloads.random_image_training(options, num_clients, 1)
    yield "resnet_lean", ratio("resnet_lean", partial(reference.seconds, "local_pixels 2 2"), partial(timed, train), unit=1e3 / 4)
    reference.close()
    simulation = workloads.make_simulation([*options, *workloads.random_image_overrides(20)])
    chosen, milliseconds = choose_clients_per_vmap(simulation, 1)
    print(f"# resnet_auto: auto chooses {chosen} of {milliseconds}", flush=True)
    count = max(chosen, num_clients)
    sequential, auto = (workloads.random_image_training(options, count, size) for size in (1, chosen))
    yield "resnet_auto", ratio("resnet_auto", partial(timed, sequential), partial(timed, auto), unit=1e3 / (2 * count))


def generators(overrides: list[str]) -> Figures:
    """Steps of the server's generator. Times in ms per step."""
    reference, simulation = ReferenceProcess(overrides), workloads.make_simulation(overrides)
    server, strategy = simulation.federation().server, simulation.strategy
    assert isinstance(strategy, FedGen), "the figures need strategy=fedgen"
    state, random = strategy.init_server(server), (simulation.seed / "heads").torch()
    head = submodule_tensors(snapshot(simulation.model), "head")
    for num_heads in (10, 100):
        heads = [{k: v + 0.1 * torch.randn(v.shape, generator=random) for k, v in head.items()} for _ in range(num_heads)]
        counts = torch.randint(50, (num_heads, simulation.task.num_classes), generator=random)
        train = partial(strategy.train_generator, server, state, heads, counts, 2)
        for _ in range(4):
            train()
        line = f"generator {num_heads} {strategy.generator_steps}"
        unit = 1e3 / strategy.generator_steps
        yield f"generator_{num_heads}", ratio(line, partial(reference.seconds, line), partial(timed, train), unit=unit)
    reference.close()


GROUPS: dict[tuple[str, ...], Callable[[list[str]], Figures]] = {
    ("local_step", "local_step_compiled"): local_steps,
    ("round_vs_loop", "overhead", "round_vs_flower"): rounds,
    ("thousand_vs_flower",): thousand_clients,
    ("scale_1000", "scale_10000"): scales,
    ("resnet_lean", "resnet_auto"): resnets,
    ("generator_10", "generator_100"): generators,
}
"""Figures that are measured together, in the order in which their function returns them."""


def main(words: Sequence[str]) -> None:
    """Print the figures that ``words`` name, or all.

    Raises:
        ConfigError: there is no such figure.
    """
    configure_process()
    figures, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    known = [figure for group in GROUPS for figure in group]
    if unknown := [figure for figure in figures if figure not in known]:
        raise ConfigError(f"figures must be among {', '.join(known)}, got {', '.join(unknown)}")
    print(f"# one thread per process, {' '.join(overrides) or 'default data'}", flush=True)
    for group, measure in GROUPS.items():
        wanted = [figure for figure in group if not figures or figure in figures]
        if wanted:
            for figure, value in measure(overrides):
                print(f"{figure} {value:.3g}", flush=True)
                if figure == wanted[-1]:
                    break


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
