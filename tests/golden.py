"""What tiny runs of every strategy leave behind, in figures: a refactoring changes none of them.

The runs are in float64 and the figures compared to 1e-10, so that they hold across processors and versions of torch. Where a
change is meant, look at ``git diff tests/golden`` after rewriting all files, or those of the strategies named, with

    python -m tests.golden [strategy ...]
"""

import json
import sys

import torch

from tests.conftest import ROOT, STRATEGIES, options, run

FOLDER = ROOT / "tests" / "golden"
COMMAND = "python -m tests.golden"


def figures(name: str) -> dict[str, float]:
    """Of every part of the final state and of all memories: its norm, and a norm in which each entry's place counts."""
    ran = run(
        f"strategy={name}", *options(name), "num_clients=4", "clients_per_round=2", "rounds=2", "local_steps=3", "precision=float64", "seed=1"
    )  # fmt: skip
    parts = {part: tensors for part, tensors in ran.state.items()}
    parts["memories"] = {f"{k:02d}/{part}/{key}": v for k, m in ran.memories.items() for part, ts in m.items() for key, v in ts.items()}
    found = {}
    for part, tensors in sorted(parts.items()):
        flat = torch.cat([tensors[key].double().flatten() for key in sorted(tensors)])
        found[f"{part}: norm"] = flat.norm().item()
        found[f"{part}: norm by place"] = (flat * torch.linspace(0, 1, len(flat), dtype=torch.float64)).norm().item()
    return found | {f"train_loss after {number}": metrics["train_loss"] for number, metrics in ran.metrics.items()}


def read(name: str) -> dict[str, float]:
    """The figures on disk."""
    return json.loads((FOLDER / f"{name}.json").read_text())


if __name__ == "__main__":
    for strategy in sys.argv[1:] or STRATEGIES:
        (FOLDER / f"{strategy}.json").write_text(json.dumps(figures(strategy), indent=1) + "\n")
        print(f"wrote tests/golden/{strategy}.json")
