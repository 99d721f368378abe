"""Lip masks: causal time grouping, pooling, dilation, union."""

import pytest
import torch

from ft2.tlpo.masks import box_mask, dilate, latent_mask, pair_mask


def test_time_groups_are_causal() -> None:
    for frame in range(9):
        pixels = torch.zeros(9, 8, 8)
        pixels[frame] = 1
        lit = latent_mask(pixels, dilation=0)[:, 0, 0]
        wanted = 0 if frame == 0 else (frame - 1) // 4 + 1
        assert lit.nonzero().flatten().tolist() == [wanted]


def test_space_is_an_eight_by_eight_average() -> None:
    pixels = torch.zeros(1, 16, 24)
    pixels[0, 0:4, 8:16] = 1
    assert latent_mask(pixels, dilation=0)[0].tolist() == [[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]


def test_batch_dimensions_stay() -> None:
    pixels = (torch.rand(2, 3, 5, 16, 16) > 0.5).float()
    whole = latent_mask(pixels, dilation=1)
    assert whole.shape == (2, 3, 2, 2, 2)
    assert torch.equal(whole[1, 2], latent_mask(pixels[1, 2], dilation=1))


def test_dilation_grows_in_space_only() -> None:
    mask = torch.zeros(2, 7, 7)
    mask[0, 3, 3] = 1
    grown = dilate(mask, 2)
    assert grown[0].sum() == 25
    assert grown[1].sum() == 0
    assert torch.equal(dilate(mask, 0), mask)


def test_pair_mask_is_the_union_with_a_background() -> None:
    a, b = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    a[0, :, 0, 0], b[0, :, 1, 1] = 1, 1
    mask = pair_mask(a, b, background=0.25, skip_first=True)
    assert mask.shape == (1, 1, 2, 2, 2)
    assert mask[0, 0, 0].tolist() == [[0, 0], [0, 0]]
    assert mask[0, 0, 1].tolist() == [[1, 0.25], [0.25, 1]]


def test_box_mask_covers_the_box() -> None:
    mask = box_mask((0.25, 0.5, 0.75, 1.0), 5, 64, 64)
    assert mask.shape == (5, 64, 64)
    assert mask[:, 32:, 16:48].min() == 1
    assert mask.sum() == 5 * 32 * 32


def test_sizes_without_a_latent_grid_are_refused() -> None:
    for shape in ((4, 16, 16), (5, 12, 16)):
        with pytest.raises(ValueError, match="latent grid"):
            latent_mask(torch.zeros(shape))
