"""TensorBoard while a run goes on: the rows of its files as events in the run folder's ``tensorboard``."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from fedkd.errors import require

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def check_tensorboard(config: DictConfig) -> None:
    """Refuse a run that is to be shown where there is nothing to show it with.

    Raises:
        ConfigError: the package is missing.
    """
    there = not config.tensorboard or find_spec("tensorboard") is not None
    require(there, "tensorboard", "must be false without the package (pip install 'fedkd[tensorboard]')", config.tensorboard)


def open_writer(config: DictConfig, folder: Path, first: int) -> "SummaryWriter | None":
    """The log of a run that goes on with round ``first``: what an interrupted one has written from there on is hidden. None if not asked for."""
    if not config.tensorboard:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=first)


def write_row(board: "SummaryWriter | None", row: Mapping[str, float], part: str = "") -> None:
    """The numbers of a row of ``metrics.csv``, or of ``part``, as scalars at its round, flushed. A row of a class is named by it."""
    if board is None:
        return
    names = [name for name in row if name not in ("round", "class")]
    for name in names:
        tag = "/".join(filter(None, (part, name, f"class_{int(row['class']):02d}" if "class" in row else "")))
        board.add_scalar(tag, row[name], int(row["round"]))
    board.flush()
