"""CUDA graphs: work that is launched at once. (The tests have a stand-in for these two functions where there is no GPU.)"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def captures(static: Sequence[Tensor]) -> bool:
    """Steps on these tensors are captured: they lie on a GPU."""
    return bool(static) and static[0].is_cuda


def capture(work: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """``work`` as one launch, and where its result is after each."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # kernels are chosen and workspaces made before the capture
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result
