"""``python -m simulations.tune_distill distiller=kd,sp,dpk student=resnet8``: every method's weight, from the same multiples of what is shipped.

A share of the training images is held out, the same for all; the others are trained on, and each multiple is judged by the student's
accuracy on what was held out, after the last epoch. No test image is seen. The teacher is trained on the same images. The choice is
appended to a CSV file, which a distillation reads with ``tuned=<file>``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import get_object

from fedkd.check import require
from simulations.distill import composed, execute
from simulations.distill_folder import rows
from simulations.rows import append
from simulations.tune import COLUMNS, each, edge, parser


def tune(factors: Sequence[float], share: float, overrides: Sequence[str], table: Path) -> float:
    """Try every multiple of the method's weight, append a row for each to ``table``, and return the best value; of equals the first.

    A value with which training diverges counts as accuracy 0.

    Raises:
        ValueError: the configuration is wrong, the method has no weight, or training diverges with every value.
    """
    shipped = composed([*overrides])
    name, scale = shipped.choices.distiller, get_object(shipped.distiller["_target_"]).scale
    require(scale is not None, "distiller", "must be a method with a weight to be tuned", name)
    found = []
    for factor in factors:
        value = float(f"{factor * shipped.distiller[scale]:.6g}")
        config = composed([*overrides, f"distiller.{scale}={value}", f"validation={share}"])
        row = {"strategy": name, "key": f"distiller.{scale}", "value": value, "rounds": config.epochs, "seed": config.seed}
        try:
            folder = execute(config)
            row |= {"accuracy": float(rows(folder)[-1]["accuracy"]), "folder": str(folder.relative_to(Path(config.output).absolute()))}
        except FloatingPointError:
            row |= {"accuracy": 0.0}
        found.append(row)
    best = max(found, key=lambda row: row["accuracy"])
    require(best["accuracy"] > 0, best["key"], "must leave training finite with one multiple at least (smaller ones)", list(factors))
    table.parent.mkdir(parents=True, exist_ok=True)
    append(table, COLUMNS, [{**row, "chosen": int(row is best)} for row in found])
    shown = ", ".join(f"{row['value']:g}: {row['accuracy']:.4f}" for row in found)
    print(f"tuned: {name} {best['key']}={best['value']:g} (held-out accuracy {shown}){edge(found, best)}", flush=True)
    return best["value"]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    asked = parser("python -m simulations.tune_distill", "distiller", __doc__, "the training images")
    asked.add_argument("--factors", type=float, nargs="+", default=[0.3, 1, 3], help="multiples of the shipped weight (0.3 1 3)")
    arguments = asked.parse_args(argv)
    each(arguments, "distiller", composed, lambda overrides, table: tune(arguments.factors, arguments.validation, overrides, table))


if __name__ == "__main__":
    sys.exit(main())
