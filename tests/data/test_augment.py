"""Random changes of training pictures."""

from __future__ import annotations

import pytest
import torch

from mtlcli.data.augment import CHANGES, augmentation


def pictures(count=64, channels=3):
    return torch.randint(0, 256, (count, channels, 16, 24), dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_keeps_shape_and_type_and_follows_the_seed(change, channels):
    image = pictures(channels=channels)
    before = image.clone()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(augmentation([change])({"image": image, "other": image})["image"])
    assert found[0].equal(found[1])
    assert (found[0].shape, found[0].dtype) == (image.shape, torch.uint8)
    assert image.equal(before)
    if change != "trivial":
        assert not found[0].equal(found[2])


@pytest.mark.parametrize(("change", "axis"), [("flip", 3), ("vertical_flip", 2)])
def test_about_half_of_the_pictures_are_flipped(change, axis):
    image = pictures(400)
    found = augmentation([change])({"image": image})["image"]
    flipped = (found == image.flip(axis)).flatten(1).all(1)
    assert ((found == image).flatten(1).all(1) | flipped).all()
    assert 0.4 < flipped.float().mean() < 0.6


def test_every_picture_is_cropped_at_a_place_of_its_own():
    image = torch.arange(240, dtype=torch.uint8).reshape(12, 20).expand(50, 1, 12, 20)
    found = augmentation(["crop"])({"image": image})["image"][:, 0]
    assert len(found.flatten(1).unique(dim=0)) > 5
    for each in found.int():  # a value is 20 times its row, plus its column
        down, right = int(each[6, 10]) // 20 - 6, int(each[6, 10]) % 20 - 10
        assert abs(down) <= 1
        assert abs(right) <= 1
        assert each[4:8, 8:12].equal(image[0, 0, 4 + down : 8 + down, 8 + right : 12 + right].int())
