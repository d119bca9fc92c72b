"""``python -m simulations.setup.strategy_table``: what every strategy in conf/ is made of, as a table, from its own declarations.

Bytes are those of one client and round, measured on FedGen's network for MNIST: of what the server sends, and of what a client answers.
"""

from functools import cache, partial

import torch
from omegaconf import DictConfig

from fedkd.config.build import build
from fedkd.federation.client import Client
from fedkd.federation.server import Server
from fedkd.models.cnn import FedGenCNN
from fedkd.seed import Seed
from fedkd.strategy import Strategy
from fedkd.training.functional_model import snapshot
from fedkd.types import Examples, State, Task, Tensors
from simulations.config import CONF, compose

TASK = Task("mnist", (1, 28, 28), 10)

HEADER = ("strategy", "down", "up", "client adds", "server", "public set", "unlike networks", "secure aggregation", "kB down", "kB up")


def names() -> list[str]:
    """The strategies in conf/."""
    return sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))


@cache
def strategy_of(name: str) -> Strategy:
    """The strategy of that name as shipped."""
    return build(compose([f"strategy={name}"]), "strategy")


def model_heterogeneity(name: str) -> str:
    """``any``; ``one embedding size``; the same where ``heads alone`` are shared; or ``no``."""
    config: DictConfig = compose([f"strategy={name}"])
    words = {"any": "any", "same_embedding_size": "one embedding size"}
    if (can := strategy_of(name).model_heterogeneity) != "none":
        return words[can]
    config.strategy.shared_layers = "head"
    try:
        return "no" if build(config, "strategy").model_heterogeneity == "none" else "heads alone"
    except ValueError:
        return "no"


def strategies_with_model_heterogeneity() -> tuple[list[str], list[str]]:
    """Strategies that work with clients of unlike networks as they are, and with ``strategy.shared_layers=head``."""
    found = {name: model_heterogeneity(name) for name in names()}
    return [n for n, can in found.items() if can in ("any", "one embedding size")], [n for n, can in found.items() if can == "heads alone"]


def traffic(name: str) -> tuple[State, State]:
    """What a client receives in a round, and what it sends."""
    strategy = strategy_of(name)
    with Seed(0).globally():
        model = FedGenCNN(TASK, widths=(6, 16), pool=False, embedding_size=32)
    random = Seed(0).torch()
    x = torch.randint(256, (6000, *TASK.shape), generator=random).to(torch.uint8)
    data = Examples(x, torch.randint(TASK.num_classes, (len(x),), generator=random), 255.0, (0.5,), (0.5,))
    server = Server(TASK, Seed(0), model, snapshot(model), 20, 500, torch.float32, data)
    shared = {part: tensors for part, tensors in strategy.init_server(server).items() if part in strategy.broadcast_parts}
    client = Client(
        id=0, task=TASK, seed=Seed(0), model=model, initial=snapshot(model), architecture="fedgen_cnn", data=data.subset(torch.arange(64)),
        num_steps=1, batch_size=32, optimizer=partial(torch.optim.SGD, lr=0.01), lr=0.01, momentum=0.0, dtype=torch.float32, public_data=data,
    )  # fmt: skip
    update, _ = strategy.train(client, shared, None, 1)
    return shared, update.state


def size(state: State) -> int:
    """Bytes of a state's numbers."""
    return sum(value.numel() * value.element_size() for tensors in state.values() for value in tensors.values())


def words(state: State) -> str:
    """A state's parts, ``model`` as what it holds of the network."""
    return ", ".join("head" if part == "model" and only_head(tensors) else part for part, tensors in state.items())


def only_head(tensors: Tensors) -> bool:
    """Nothing but the last layer."""
    return all(key.startswith("head.") for key in tensors)


def row(name: str) -> tuple[str, ...]:
    """One line of the table."""
    strategy, (down, up) = strategy_of(name), traffic(name)
    yes = {True: "yes", False: "no"}
    return (
        f"`{name}`", words(down), words(up), strategy.client_summary or "-", strategy.server_summary, yes[strategy.needs_public_data],
        model_heterogeneity(name), yes[strategy.secure_aggregation], f"{size(down) / 1e3:.1f}", f"{size(up) / 1e3:.1f}",
    )  # fmt: skip


def table() -> str:
    """All strategies, in Markdown."""
    rows = [HEADER, tuple("---:" if title.startswith("kB") else "---" for title in HEADER), *map(row, names())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    print(table())
