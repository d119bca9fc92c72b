"""What a client's step costs as federations grow."""

import os
import resource
import statistics

from simulations.benchmarks import shapes
from simulations.cluster import start_ray

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
    """FedGen, every client with 64 examples drawn from all, two actors, chunks as cohort=auto would cut them at most."""
    sizes = [f"num_clients={population}", f"clients_per_round={per_round}", f"local_steps={STEPS}", "cohort=5"]
    kept = [o for o in overrides if not o.lstrip("~+").startswith("partition")]
    return shapes.federation([*kept, *shapes.overlapping_overrides(PER_CLIENT), *sizes], workers=2)
