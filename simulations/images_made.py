"""A sheet of the images that a source has made, by the class that the teacher sees in them."""

from pathlib import Path

import numpy as np
import torch

from fedkd.bound import Bound
from fedkd.distillation import Progress, Training
from simulations import distill_figures
from simulations.distill_setup import Setup

COLUMNS = 10


@torch.no_grad()
def sheet(setup: Setup, training: Training, progress: Progress, folder: Path) -> tuple[Path, Path] | None:
    """The latest images of each class, at most ten, as ``images.pdf`` and ``images.png``; None where none were made."""
    if "images" not in progress.memory or setup.teacher is None:
        return None
    images = progress.memory["images"].flip(0)
    teacher = Bound(setup.teacher).at(training.taught).within("student")
    said = torch.cat([teacher(part).logits.argmax(-1) for part in images.split(setup.config.evaluation_batch_size)]).cpu()
    pixels = seen(setup, images)
    blank = np.ones_like(pixels[:1])
    rows = []
    for label in range(setup.task.num_classes):
        found = pixels[(said == label).numpy()][:COLUMNS]
        rows.append(np.concatenate([found, np.repeat(blank, COLUMNS - len(found), 0)]))
    names = setup.task.class_names or [str(label) for label in range(setup.task.num_classes)]
    return distill_figures.sheet(np.stack(rows), names, folder / "images")


def seen(setup: Setup, images: torch.Tensor) -> np.ndarray:  # [N, C, H, W] -> [N, H, W] or [N, H, W, 3]
    """Images as people see them, in 0..1."""
    task = setup.task
    mean, std = (torch.tensor(value, dtype=images.dtype).view(-1, 1, 1) for value in (task.mean, task.std))
    pixels = ((images.cpu() * std + mean) / task.brightest).clamp(0, 1).float().numpy()
    return pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1)
