"""Inputs and outputs of public code on random tensors, which our own functions are compared with.

``public_code_federated.npz`` has 268 arrays in groups such as ``server/`` and ``robust/``. The public functions that the docstrings of our
classes name have computed them, at their commits, on random tensors of type float64 (FedDyn: float32).
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@lru_cache
def public_code(group: str) -> dict[str, Tensor]:
    """The arrays of a group by name.

    Args:
        group: such as ``server``.
    """
    with np.load(Path(__file__).with_name("public_code_federated.npz")) as file:
        names = [name for name in file.files if name.startswith(f"{group}/")]
        return {name.removeprefix(f"{group}/"): torch.from_numpy(file[name]) for name in names}
