"""``fedkd describe strategy --table``: the components of every strategy in ``conf/strategy`` as a table, from the strategies' declarations.

Bytes are those of one client and round, measured on FedGen's network for MNIST: the broadcast that a client receives, and its update.
"""

import copy
from functools import cache, partial

import torch
import yaml
from hydra.utils import get_class
from omegaconf import DictConfig

from fedkd.config.build import build
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.models.cnn import FedGenCNN
from fedkd.seed import Seed
from fedkd.strategy import Strategy
from fedkd.training.functional_model import snapshot
from fedkd.types import INPUTS, TARGETS, Examples, State, Task, Tensors
from simulations.config import CONF, compose

TASK = Task("mnist", (1, 28, 28), 10)
"""The task of the measured networks."""

HEADER = (
    "strategy", "downlink", "uplink", "client adds", "server", "public data", "model heterogeneity", "secure aggregation",
    "downlink kB", "uplink kB",
)  # fmt: skip
"""The titles of the columns."""

NOTE = "kB are those of a first round with untrained networks. FedKD's factors of low rank get smaller as the network trains."
"""A sentence below the table."""


def strategy_names() -> list[str]:
    """The options of ``conf/strategy``."""
    return sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))


@cache
def shipped_strategy(name: str) -> Strategy:
    """A strategy with the values of its yaml file."""
    return build(compose([f"strategy={name}"]), "strategy")


@cache
def model_heterogeneity(name: str) -> str:
    """Architectures that clients may have: ``any``, ``same embedding size``, ``head only`` or ``none``.

    ``head only`` is the same embedding size with ``strategy.shared_layers=head``.
    """
    if (heterogeneity := shipped_strategy(name).model_heterogeneity) != "none":
        return heterogeneity.replace("_", " ")
    config: DictConfig = compose([f"strategy={name}"])
    config.strategy.shared_layers = "head"
    try:
        return "none" if build(config, "strategy").model_heterogeneity == "none" else "head only"
    except ValueError:
        return "none"


def strategies_with_model_heterogeneity() -> tuple[list[str], list[str]]:
    """Strategies that accept different architectures as shipped, and those that do with ``strategy.shared_layers=head``."""
    heterogeneity = {name: model_heterogeneity(name) for name in strategy_names()}
    as_shipped = [name for name, value in heterogeneity.items() if value in ("any", "same embedding size")]
    return as_shipped, [name for name, value in heterogeneity.items() if value == "head only"]


def strategies_for(task: Task) -> list[str]:
    """Strategies that train on the inputs and targets of a task."""
    return [name for name in strategy_names() if takes(strategy_class(name), task.input, task.target)]


def takes(strategy: Strategy | type[Strategy], input: str, target: str) -> bool:
    """Whether a strategy trains on these inputs and targets."""
    return input in strategy.inputs and target in strategy.targets


def strategy_class(name: str) -> type[Strategy]:
    """The class of an option of ``conf/strategy``, found without composing a configuration, which takes a second for all of them."""
    values = yaml.safe_load((CONF / "strategy" / f"{name}.yaml").read_text(encoding="utf-8"))
    if "_target_" not in values:
        (base,) = (entry for entry in values["defaults"] if entry in strategy_names())
        return strategy_class(base)
    found: type[Strategy] = get_class(values["_target_"])
    return found


def round_traffic(name: str) -> tuple[State, State]:
    """The broadcast that a client receives in a round, and the update that it sends."""
    strategy = shipped_strategy(name)
    with Seed(0).globally():
        model = FedGenCNN(TASK, widths=(6, 16), pool=False, embedding_size=32)
    generator = Seed(0).torch()
    x = torch.randint(256, (6000, *TASK.shape), generator=generator).to(torch.uint8)
    data = Examples(x, torch.randint(TASK.num_classes, (len(x),), generator=generator), 255.0, (0.5,), (0.5,))
    server = Server(TASK, Seed(0), model, snapshot(model), 20, 500, torch.float32, data)
    broadcast = {part: tensors for part, tensors in strategy.init_server(server).items() if part in strategy.broadcast_parts}
    network = strategy.client_network(copy.deepcopy(model), copy.deepcopy(model))
    client = Client(
        id=0, task=TASK, seed=Seed(0), model=network, initial=snapshot(network), architecture="fedgen_cnn",
        data=data.subset(torch.arange(64)), num_steps=1, batch_size=32, optimizer=partial(torch.optim.SGD, lr=0.01), lr=0.01,
        momentum=0.0, dtype=torch.float32, public_data=data,
    )  # fmt: skip
    update, _ = strategy.train(client, broadcast, None, 1)
    return broadcast, update.state


def num_bytes(state: State) -> int:
    """Size of a state's tensors in bytes."""
    return sum(value.numel() * value.element_size() for tensors in state.values() for value in tensors.values())


def part_names(state: State) -> str:
    """The names of a state's parts. ``model`` is called ``head`` where it has the last layer only."""
    return ", ".join("head" if part == "model" and only_head(tensors) else part for part, tensors in state.items())


def only_head(tensors: Tensors) -> bool:
    """Whether all parameters are those of the last layer."""
    return all(key.startswith("head.") for key in tensors)


def table_row(name: str) -> tuple[str, ...]:
    """One line of the table."""
    strategy, (broadcast, update) = shipped_strategy(name), round_traffic(name)
    return (
        f"`{name}`",
        part_names(broadcast),
        part_names(update),
        strategy.client_summary or "-",
        strategy.server_summary,
        "yes" if strategy.needs_public_data else "no",
        model_heterogeneity(name),
        "yes" if strategy.secure_aggregation else "no",
        f"{num_bytes(broadcast) / 1e3:.1f}",
        f"{num_bytes(update) / 1e3:.1f}",
    )


def table() -> str:
    """All strategies, in Markdown, and :data:`NOTE`."""
    rows = [HEADER, tuple("---:" if title.endswith("kB") else "---" for title in HEADER), *map(table_row, strategy_names())]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in rows), "", NOTE])


def task_table() -> str:
    """The kinds of inputs and targets on which every strategy trains, in Markdown."""
    kinds = ("images", "tokens", "tables", "series"), ("one class", "several classes", "next tokens")
    header = ("strategy", *kinds[0], *kinds[1])
    rows = [header, ("---",) * len(header)]
    for name in strategy_names():
        strategy = strategy_class(name)
        taken = [*(input in strategy.inputs for input in INPUTS), *(target in strategy.targets for target in TARGETS)]
        rows.append((f"`{name}`", *("yes" if one else "no" for one in taken)))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    print(table())
