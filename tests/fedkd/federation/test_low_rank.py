"""Compression by singular values against public code, and where that loses tensors."""

import pytest
import torch
from torch.testing import assert_close

from fedkd.federation.low_rank import LEFT, compress, decompress, low_rank_factors
from tests.public_code import public_code


@pytest.mark.parametrize("energy", [95, 98])
@pytest.mark.parametrize("name", ["svd_decaying", "svd_flat", "svd_conv"])
def test_ranks_of_public_code(name, energy):
    """Where public code needs the full rank, its rank is 0 and the tensor becomes zero. Here it stays."""
    arrays = public_code("fedkd")
    value, rank = arrays[name], int(arrays[f"{name}_rank_{energy}"])
    sent = compress({"w": value}, energy / 100)
    after = decompress(sent)["w"]
    if rank == 0:
        assert sent.keys() == {"w"} and torch.equal(after, value) and not arrays[f"{name}_after_{energy}"].any()
    else:
        assert low_rank_factors(value, energy / 100)[0].shape[-1] == rank
        assert_close(after, arrays[f"{name}_after_{energy}"], rtol=0, atol=1e-12)


def test_factors_are_never_larger_than_the_tensor():
    torch.manual_seed(0)
    tensors = {"conv": torch.randn(6, 5, 3, 3), "linear": torch.randn(30, 1) @ torch.randn(1, 20), "bias": torch.randn(4)}
    sent = compress({**tensors, "steps": torch.tensor(3), "zero": torch.zeros(3, 3)}, 0.8)
    assert f"linear{LEFT}" in sent and "conv" in sent and not torch.equal(sent["conv"], tensors["conv"])
    assert sum(value.numel() for value in sent.values()) < sum(value.numel() for value in tensors.values())
    assert {key: value.shape for key, value in decompress(sent).items() if key in tensors} == {k: v.shape for k, v in tensors.items()}
    assert torch.equal(sent["zero"], torch.zeros(3, 3)) and torch.equal(sent["bias"], tensors["bias"])


def test_all_energy_sends_the_same_bits():
    tensors = {"w": torch.randn(8, 5), "conv": torch.randn(4, 3, 5, 5)}
    assert all(torch.equal(compress(tensors, 1.0)[key], value) for key, value in tensors.items())
