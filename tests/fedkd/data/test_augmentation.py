"""Random crops and flips equal those of torchvision, and have the right distribution."""

import torch
from torchvision.transforms.v2 import functional

from fedkd.data.augmentation import Augmentation, black_pixel
from fedkd.data.digits import Digits
from fedkd.seed import Seed


def test_crops_and_flips_are_those_of_torchvision():
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    augmentation = Augmentation(crop=2, flip=True)
    draws = {name: value[0] for name, value in augmentation.draw(1, 6, Seed(4)).items()}
    value = torch.tensor([0.1, 0.2, 0.3])
    moved = augmentation(x, draws, value)
    assert draws["mirrored"].unique().tolist() == [0, 1] and draws["moves"].abs().max() == 2
    for image, new, (down, right), mirrored in zip(x, moved, draws["moves"].tolist(), draws["mirrored"].tolist(), strict=True):
        padded = torch.stack([functional.pad(channel[None], [2] * 4, fill=float(v))[0] for channel, v in zip(image, value)])
        crop = padded[:, 2 + down : 10 + down, 2 + right : 10 + right]
        assert torch.equal(new, crop.flip(-1) if mirrored else crop)


def test_all_shifts_are_equally_likely_and_half_of_the_images_are_flipped():
    draws = Augmentation(crop=4, flip=True).draw(100, 64, Seed(0))
    counts = torch.bincount((draws["moves"] + 4).flatten(), minlength=9)
    assert len(counts) == 9 and ((counts / counts.sum() - 1 / 9).abs() < 0.01).all()
    assert abs(draws["mirrored"].double().mean() - 0.5) < 0.02


def test_without_crop_and_flip_nothing_is_drawn_or_changed():
    augmentation = Augmentation(crop=0, flip=False)
    x = torch.rand(2, 1, 4, 4)
    assert augmentation.draw(3, 2, Seed(0)) == {} and augmentation(x, {}, torch.zeros(1)) is x


def test_a_black_pixel_is_normalized():
    _, train, _ = Digits()()
    assert torch.equal(black_pixel(train, torch.float64), torch.zeros(1, dtype=torch.float64))
