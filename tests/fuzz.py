"""Random configurations: every key of ``conf/`` mutated alone and in pairs. ``python -m tests.fuzz 3000`` tries that many.

Each configuration is composed, checked and built; nothing is trained. It must be valid, or give one clear line within two seconds.
"""

import os
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from fedkd.config.build import to_dict
from fedkd.config.validation import leaves
from fedkd.errors import ConfigError
from simulations.config import compose
from simulations.distillation.runner import compose_distillation, prepare_distillation
from simulations.federation.runner import prepare_run
from simulations.overrides import CONF

VALUES = (
    "null", "true", "abc", "''", "0", "1", "-1", "0.5", "-0.5", "nan", "inf", "-inf", "1e308", "1e-320", "2147483648",
    "9223372036854775807", "99999999999999999999999999", "[]", "[1,2]", "[null]", "[[1]]", "['a','b']", "{}", "{a: 1}", "'ü数'", "'a\\nb'",
    "'${nowhere}'", "'=1+1'", "../../x", "/nonexistent/x", "'[x'", "[nan]", "[0.5,inf]", "{_target_: os.makedirs, name: made}",
)  # fmt: skip
"""Values of a mutated key: wrong types, out of range, not finite, empty, huge, lists, unicode, interpolations, code."""

TARGETS = (
    "os.makedirs", "builtins.open", "os._exit", "torch.save", "fedkd.errors.require", "strategies.fedavg.Nope", "nowhere.X", "null", "3",
)  # fmt: skip
"""Values of a mutated ``_target_``. None may be called."""

RUN_GROUPS = ("data", "partition", "shift", "drift", "systems", "public_data", "model", "optimizer", "strategy", "evaluation", "engine")
DISTILLATION_GROUPS = ("augmentation", "distiller", "image_source", "model@teacher", "model@student")
SMALL_RUN = ("engine=local", "num_clients=4", "clients_per_round=2", "partition=iid", "model=mlp", "strategy=fedavg", "clients_per_vmap=1")
SMALL_DISTILLATION = ("teacher=mlp", "student=mlp", "epochs=2")
LIMIT = 2.0
"""Seconds of processor time for one configuration."""


def place(group: str) -> str:
    """The key under which a group stands."""
    return group.rpartition("@")[2]


@cache
def keys(option: str) -> tuple[str, ...]:
    """The dotted keys of an option ``group=name``, or the run's own keys for ``config`` and ``distill``."""
    if option in ("config", "distill"):
        config = composed(option, ())
        return tuple(str(key) for key, value in config.items() if key != "choices" and not isinstance(value, DictConfig))
    group, _, name = option.partition("=")
    path = CONF / group.partition("@")[0] / f"{name}.yaml"
    node = OmegaConf.to_container(OmegaConf.load(path))
    if isinstance(node, dict) and "defaults" in node:
        node = to_dict(composed(root_of(group), (option,))[place(group)])
    return tuple(re.sub(r"\.\d+$", "", key) for key, _ in leaves(node, place(group)))


def root_of(group: str) -> str:
    """The configuration in which a group is chosen."""
    return "distill" if group in DISTILLATION_GROUPS else "config"


def composed(root: str, words: Sequence[str]) -> DictConfig:
    """The configuration of a run or a distillation."""
    return compose(words) if root == "config" else compose_distillation(list(words))


def options() -> list[str]:
    """All options of all groups, and the two roots several times, so that their keys are drawn as often."""
    groups = (*RUN_GROUPS, *DISTILLATION_GROUPS)
    found = [f"{group}={path.stem}" for group in groups for path in sorted((CONF / group.partition("@")[0]).glob("*.yaml"))]
    return [*found, *["config", "distill"] * 15]


def mutated(key: str, rng: random.Random) -> str:
    """One word that changes a key, removes it, or misspells it."""
    kind, part = rng.random(), key.partition(".")[0]
    if key.endswith("_target_") or kind < 0.06:
        return f"{key if key.endswith('_target_') else f'{part}._target_'}={rng.choice(TARGETS)}"
    if kind < 0.12:
        return rng.choice([f"{key}x=1", f"+{key}x=1", f"~{key}", f"{part}=nowhere", f"+{part}._args_=[1]", f"+{part}.ünbekannt=1"])
    return f"++{key}={rng.choice(VALUES)}"


def configurations(seed: int, number: int) -> Iterator[tuple[str, list[str]]]:
    """``(root, words)`` of random configurations; every third one has two mutations."""
    rng, known = random.Random(seed), options()
    for count in range(number):
        option = rng.choice(known)
        root = option if option in ("config", "distill") else root_of(option.partition("=")[0])
        small = SMALL_RUN if root == "config" else SMALL_DISTILLATION
        words = [word for word in small if word.partition("=")[0] != place(option.partition("=")[0])]
        words += [] if option == root else [option]
        pool = keys(option) or keys(root)
        words += [mutated(rng.choice(pool), rng)]
        words += [mutated(rng.choice(keys(root)), rng)] if count % 3 == 2 else []
        yield root, words


def outcome(root: str, words: Sequence[str], output: Path) -> str:
    """``valid``, or the line that refuses the configuration. Any other exception is a fault, and so is a line that names no key."""
    try:
        config = composed(root, [f"output={output}", "progress=false", *words])
        (prepare_run if root == "config" else prepare_distillation)(config)
    except ConfigError as error:
        line = str(error)
        assert "\n" not in line and line.isprintable() and len(line) < 4000, line
        assert line.partition(" ")[0].strip(".,:") and " " in line, line
        return line
    return "valid"


def fault(root: str, words: Sequence[str], output: Path, again: bool = True) -> str | None:
    """What is wrong with the answer to a configuration; None if nothing is."""
    started = time.process_time()
    try:
        outcome(root, words, output)
    except BaseException as error:  # SystemExit of a called target too
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    seconds = time.process_time() - started
    if seconds > LIMIT and again:  # the first use of a module imports it
        return fault(root, words, output, again=False)
    return f"took {seconds:.1f} s" if seconds > LIMIT else None


def main(number: int, seed: int) -> list[str]:
    """Try configurations, print the faulty ones, and return them."""
    found = []
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):  # once for all
        for root, words in configurations(seed, number):
            if what := fault(root, words, Path(os.devnull)):
                found.append(f"{root} {' '.join(words)}: {what}")
                print(found[-1], flush=True)
    print(f"{number} configurations, {len(found)} faults")
    return found


if __name__ == "__main__":
    sys.exit(1 if main(*(int(word) for word in (*sys.argv[1:], "3000", "0")[:2])) else 0)
