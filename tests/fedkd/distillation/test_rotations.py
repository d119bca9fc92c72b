"""Rotated images, joint labels, and class logits of hierarchical self-supervision."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fedkd.distillation.methods.hsakd import class_logits, joint_labels, rotations
from tests.fedkd.losses.distillation_cases import MAPS, RNG, Y, assert_recorded_and_mapped, tensor


def test_rotations_and_joint_labels_of_images():
    x = tensor(RNG.standard_normal((3, 2, 4, 4)))
    rotated, labels = rotations(x), joint_labels(torch.tensor([5, 0, 2]))
    assert rotated.shape == (12, 2, 4, 4) and torch.equal(rotated[0::4], x), "the first rotation is the image itself"
    for b in range(3):
        for k in range(4):
            np.testing.assert_array_equal(rotated[4 * b + k].numpy(), np.rot90(x[b].numpy(), k, (1, 2)))
    assert labels.tolist() == [20, 21, 22, 23, 0, 1, 2, 3, 8, 9, 10, 11] and labels.dtype == torch.int64
    assert torch.equal(rotations(rotations(x))[5::16], rotated[2::4]), "90 + 90 = 180 degrees"
    assert torch.equal(rotations(rotated[3::4])[1::4], x), "270 + 90 = 360 degrees"


def test_class_logits_are_sums_over_rotations():
    joint = tensor(RNG.standard_normal((2, 3, 12)))
    logits = class_logits(joint)
    assert logits.shape == (2, 3, 3)
    for c in range(3):
        assert_close(logits[..., c], sum(joint[..., 4 * c + k] for k in range(4)))


@pytest.mark.parametrize(
    ("function", "x"), [(rotations, tensor(MAPS)), (joint_labels, torch.from_numpy(Y)), (class_logits, tensor(MAPS))],
    ids=["rotations", "joint labels", "class logits"],
)  # fmt: skip
def test_rotations_labels_and_logits_can_be_recorded_and_vectorized(function, x):
    assert_recorded_and_mapped(function, x)


def test_rotations_need_square_images():
    with pytest.raises(ValueError, match="rotations must be of square images, got '1x5'"):
        rotations(torch.zeros(6, 1, 1, 5))
