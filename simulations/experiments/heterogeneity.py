"""``fedkd heterogeneity``: which labels clients hold under each partition, and how they see images under each shift. Trains nothing.

The data, the seed and the number of clients are those of the overrides. A partition and a shift that they choose make one more panel and
strip, and a drift makes a panel for each of up to five phases. Data with groups, such as domains, show images of each group. Writes
heterogeneity.pdf and heterogeneity.png.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig

from fedkd.config.build import build
from fedkd.config.validation import check_run
from fedkd.data.client_shift import ClientView, full_scale
from fedkd.errors import require
from fedkd.metrics.label_skew import effective_classes, label_distance
from fedkd.partition.common import label_counts
from fedkd.seed import Seed
from fedkd.types import Examples, Partition, Task
from simulations.config import compose
from simulations.reports.figures.heterogeneity import SHOWN, Panel, Strip, page
from simulations.setup.clients import divide_among_clients, make_client_data, read_data

SPLITS = {
    "iid": ["partition=iid"],
    "dirichlet 1": ["partition=dirichlet", "partition.alpha=1.0"],
    "dirichlet 0.1": ["partition=dirichlet", "partition.alpha=0.1"],
    "dirichlet 0.05": ["partition=dirichlet", "partition.alpha=0.05"],
    "niid_bench 0.1": ["partition=niid_bench", "partition.alpha=0.1"],
    "client_dirichlet 0.1": ["partition=client_dirichlet", "partition.alpha=0.1"],
    "fedgen 0.1": ["partition=fedgen", "partition.alpha=0.1"],
    "classes_per_client 2": ["partition=classes_per_client", "partition.per_client=2"],
    "shards 2": ["partition=shards", "partition.per_client=2"],
    "quantity_skew 0.5": ["partition=quantity_skew", "partition.alpha=0.5"],
    "subsample 0.1": ["partition=subsample", "partition.base.alpha=0.1"],
    "long_tail 100": ["partition=long_tail"],
    "missing_labels 0.5": ["partition=missing_labels", "partition.base.alpha=1.0", "partition.by=classes"],
    "by_group": ["partition=by_group"],
}

MAX_PHASES = 5
"""Phases of a drift that the page shows."""

SHIFTS = ("rotation", "domains", "noise", "blur", "color", "label_noise")


MAX_GROUPS = 12
"""Groups of which images are shown."""


@dataclass(frozen=True)
class Scene:
    """What all settings have in common."""

    overrides: Sequence[str]
    config: DictConfig
    task: Task
    train: Examples
    test: Examples

    @property
    def seed(self) -> Seed:
        """Of the draws: the same as in a run."""
        return Seed(self.config.seed)

    def split(self, setting: Sequence[str]) -> Partition:
        """Who holds what."""
        config = compose([*self.overrides, *setting])
        check_run(config)
        return divide_among_clients(config, self.train.attributes, self.test.attributes, self.seed / "partition")

    def shifted(self, setting: Sequence[str], train: Sequence[np.ndarray]) -> tuple[DictConfig, list[ClientView], list[Examples]]:
        """The shift's parameters, the clients' levels, and their training examples ``train`` as they see them."""
        config = compose([*self.overrides, *setting])
        check_run(config)
        shift, seed = build(config, "shift"), self.seed / "shift"
        none = [np.empty(0, np.int64)] * len(train)
        held, _ = shift(self.train, self.test, Partition(list(train), none), self.task.num_classes, seed)
        return config.shift, shift.views(len(train), self.task.shape[0], seed), held


def scene(overrides: Sequence[str]) -> Scene:
    """The data and clients that ``overrides`` name."""
    overrides = ["clients_per_round=1", *overrides]  # nobody trains: any number of clients will do
    config = compose(overrides)
    check_run(config)
    task, train, test = read_data(config)
    rule = "must be images with one class each, which the page draws"
    require(task.input == "image" and task.has_labels, "data", rule, f"{task.name} ({task.input}, {task.target})")
    return Scene(overrides, config, task, train, test)


def panel(of: Scene, title: str, setting: Sequence[str]) -> Panel:
    """One split."""
    held = label_counts(of.split(setting).train, of.train.y.numpy(), of.task.num_classes)
    return Panel(title, f"d {label_distance(held):.2f}   c {effective_classes(held):.1f}", held)


def wrong_labels(of: Scene, setting: Sequence[str]) -> Panel:
    """Wrong labels by client and by the class that they name, of an even split."""
    index = of.split(SPLITS["iid"]).train
    held = of.shifted(setting, index)[2]
    wrong = [one.y[one.y != of.train.y[own]].numpy() for one, own in zip(held, index)]
    table = np.stack([np.bincount(labels, minlength=of.task.num_classes) for labels in wrong])
    return Panel("iid, wrong labels", f"{100 * table.sum() / sum(map(len, index)):.0f} % of all", table)


def phases(of: Scene, setting: Sequence[str]) -> list[Panel]:
    """What clients hold in the phases of a drift: in all of them, or in some from the first to the last."""
    config = compose([*of.overrides, *setting])
    check_run(config)
    views = make_client_data(config, of.task, of.train, of.test, of.seed).views
    assert views is not None
    panels = []
    for number in sorted(set(np.linspace(0, len(views.phases) - 1, min(MAX_PHASES, len(views.phases))).round().astype(int).tolist())):
        held = np.stack([one.y.bincount(minlength=of.task.num_classes).numpy() for one in views.examples(number)[0]])
        phase = views.phases[number]
        title = f"task {number + 1}, round {phase.first_round}" if phase.task else f"from round {phase.first_round}"
        panels.append(Panel(title, f"d {label_distance(held):.2f}   c {effective_classes(held):.1f}", held))
    return panels


def strip(of: Scene, title: str, setting: Sequence[str]) -> Strip:
    """One shift: the first image of a class as every client sees it, or, where labels are wrong, each client's first image of it."""
    label = 4 % of.task.num_classes
    places = np.flatnonzero(of.train.y.numpy() == label)
    shift, views, held = of.shifted(setting, [places[:1]] * of.config.num_clients)
    if knob := shift.get("color_jitter" if title == "color" else title):
        title = f"{title} {len(knob) if isinstance(knob, ListConfig) else f'{knob:g}'}"
    full, number = full_scale(of.train), min(SHOWN, of.config.num_clients)
    if not shift.label_noise:
        images = [of.train.x[places[0]], *(stored_image(one, 0) for one in held[:number])]
        return Strip(title, [_shown(image, full) for image in images], ["original", *(_level(view) for view in views[:number])])
    index = of.split(SPLITS["iid"]).train
    held = of.shifted(setting, index)[2]
    firsts = [int(np.isin(own, places).argmax()) for own in index[:number]]
    images = [of.train.x[places[0]], *(stored_image(one, first) for one, first in zip(held, firsts))]
    given = [int(one.y[first]) for one, first in zip(held, firsts)]
    wrong = frozenset(client + 1 for client, (own, first) in enumerate(zip(index, firsts)) if of.train.y[own[first]] != given[client])
    return Strip(title, [_shown(image, full) for image in images], ["original", *map(str, given)], wrong)


def group_strips(of: Scene) -> list[Strip]:
    """Images of each domain, writer or other group, of the classes in turn; of the first groups where there are many."""
    if of.train.groups is None:
        return []
    groups, labels, full = of.train.groups.numpy(), of.train.y.numpy(), full_scale(of.train)
    strips = []
    for group in np.unique(groups)[:MAX_GROUPS].tolist():
        by_class = [np.flatnonzero((groups == group) & (labels == label)) for label in range(of.task.num_classes)]
        turns = [index[turn] for turn in range(max(map(len, by_class))) for index in by_class if turn < len(index)][: SHOWN + 1]
        shown = [stored_image(of.train, place) for place in turns]
        title = of.train.group_names[group] if of.train.group_names else f"group {group}"
        strips.append(Strip(title, [_shown(image, full) for image in shown], [str(labels[place]) for place in turns]))
    return strips


def stored_image(examples: Examples, place: int) -> torch.Tensor:  # [C, H, W]
    """The image of one example as it is stored."""
    return examples.x[place if examples.rows is None else int(examples.rows[place])]


def _shown(stored: torch.Tensor, full: float) -> np.ndarray:  # [C, H, W] -> [H, W, C]
    """An image for Matplotlib, in 0..1."""
    image = (stored.float() / full).permute(1, 2, 0).numpy()
    return image if image.shape[-1] == 3 else image[..., :1].repeat(3, -1)


def _level(view: ClientView) -> str:
    """What a client got, where it is one thing."""
    turn = view.rotation + view.domain
    words = [f"{turn:.0f}°" if turn else "", f"{view.noise:.2f}" if view.noise else "", f"{view.blur:.1f} px" if view.blur else ""]
    words = [word for word in [*words, f"×{view.brightness:.2f}" if view.brightness != 1 else ""] if word]
    return words[0] if len(words) == 1 else "" if words else "0"


def compare(overrides: Sequence[str]) -> list[Path]:
    """The page that ``overrides`` describe.

    Raises:
        ConfigError: naming the key that is wrong, or the split that these data do not allow.
    """
    own = {part: [word for word in overrides if word.lstrip("+~").startswith(part)] for part in ("partition", "shift", "drift")}
    of = scene([word for word in overrides if word not in (*own["partition"], *own["shift"], *own["drift"])])
    shown = {title: setting for title, setting in SPLITS.items() if title != "by_group" or of.train.groups is not None}
    panels = [panel(of, title, setting) for title, setting in shown.items()]
    panels += [panel(of, "partition as given", own["partition"])] if own["partition"] else []
    panels += phases(of, [*own["partition"], *own["shift"], *own["drift"]]) if own["drift"] else []
    panels.append(wrong_labels(of, ["shift=label_noise"]))
    strips = [strip(of, name, [f"shift={name}"]) for name in SHIFTS]
    strips += [strip(of, "shift as given", own["shift"])] if own["shift"] else []
    strips += group_strips(of)
    folder = Path(of.config.output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return page(panels, strips, folder / "heterogeneity")
