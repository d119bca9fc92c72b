"""A generator of images as a part of the server's state: created once, trained in every round, and asked for images."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.seed import Seed
from fedkd.training.functional_model import FunctionalModel, snapshot
from fedkd.types import Generated, Task, Tensors


def new_generator(generator: Callable[..., nn.Module], task: Task, seed: Seed, example: Tensor) -> Tensors:
    """The tensors of a new generator, with the device and type of ``example``."""
    with seed.globally():
        module = generator(task)
    return snapshot(module.to(example.device, example.dtype))


@lru_cache(maxsize=8)
def cached_generator(generator: Callable[..., nn.Module], task: Task) -> Any:
    """A cached generator module whose tensors are always overwritten before use."""
    with Seed(0).globally():  # so that the global generators are not advanced
        return generator(task)


def generated_images(
    generator: Callable[..., nn.Module], tensors: Tensors, task: Task, y: Tensor, seed: Seed, batch_size: int
) -> Generated:  # [N]
    """Images of a generator in eval mode for labels ``y``, with noise of ``seed``."""
    example = next(iter(tensors.values()))
    module = cached_generator(generator, task).to(example.device, example.dtype)
    model = FunctionalModel(module).at(tensors)
    noise = torch.randn(len(y), module.noise_size, generator=seed.torch(), dtype=example.dtype).to(y.device)
    pieces = zip(noise.split(batch_size), y.split(batch_size))
    return Generated(torch.cat([model(*piece) for piece in pieces]), y, are_embeddings=False)
