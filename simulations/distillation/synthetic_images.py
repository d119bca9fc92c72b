"""The latest synthetic images of a data-free distillation, saved for the report."""

from pathlib import Path

import numpy as np
import torch

from fedkd.distillation.student_training import Progress, Training
from fedkd.training.functional_model import FunctionalModel
from simulations.distillation.setup import Setup

IMAGES_PER_CLASS = 10
"""Largest number of images of a class that are saved."""


def save_synthetic_images(setup: Setup, training: Training, progress: Progress, folder: Path) -> Path | None:
    """Write the arrays of :func:`synthetic_images` to ``synthetic_images.npz``.

    Returns:
        The path of the file. None if the image source makes no images.
    """
    arrays = synthetic_images(setup, training, progress)
    if arrays is None:
        return None
    path = folder / "synthetic_images.npz"
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return path


@torch.no_grad()
def synthetic_images(setup: Setup, training: Training, progress: Progress) -> dict[str, np.ndarray] | None:
    """The latest images of each class: ``images`` [N, channels, height, width] as unsigned bytes, ``labels`` [N] as the teacher predicts
    them, and ``class_names`` [C]. None if the image source makes no images.
    """
    if "images" not in progress.source_state or setup.teacher is None:
        return None
    images = progress.source_state["images"].flip(0)  # the latest first
    teacher = FunctionalModel(setup.teacher).at(training.teacher_tensors).submodule("student")
    labels = torch.cat([teacher(batch).logits.argmax(-1) for batch in images.split(setup.config.evaluation_batch_size)]).cpu()
    task = setup.task
    saved = torch.cat([torch.nonzero(labels == label).flatten()[:IMAGES_PER_CLASS] for label in range(task.num_classes)])
    return {"images": to_bytes(setup, images[saved]), "labels": labels[saved].numpy(), "class_names": np.array(task.names)}


def to_bytes(setup: Setup, images: torch.Tensor) -> np.ndarray:  # [N, C, H, W] -> [N, C, H, W]
    """Standardized images as pixels 0..255."""
    task = setup.task
    mean, std = (torch.tensor(value, dtype=images.dtype).view(-1, 1, 1) for value in (task.mean, task.std))
    return ((images.cpu() * std + mean) / task.max_pixel).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
