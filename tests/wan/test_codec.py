"""The nano codec: exact on what it can represent, causal, and relative to the reference."""

import numpy as np
import pytest
import torch

from ft2.wan.codec import (
    MotionCodec,
    chunk_motion,
    from_patches,
    neighbourhood,
    to_bytes,
    to_patches,
    to_unit,
)
from ft2.wan.motion import estimate_motion, warp


@pytest.fixture
def codec() -> MotionCodec:
    """A codec with random orthonormal bases and a ridge that copies its own position."""
    torch.manual_seed(0)
    codec = MotionCodec(basis=8)
    basis = torch.linalg.qr(torch.randn(64, 768, 8)).Q
    codec.residual_encode.copy_(basis)
    codec.residual_basis.copy_(basis.transpose(1, 2))
    codec.residual_ridge[:, 4::9] = torch.eye(8)
    still = torch.linalg.qr(torch.randn(64, 192, 16)).Q
    codec.image_encode.copy_(still)
    codec.image_decode.copy_(still.transpose(1, 2))
    return codec


def picture(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 9, 9, generator=generator)
    large = torch.nn.functional.interpolate(small, (64, 64), mode="bicubic").clamp(0, 1)
    return (large * 255).to(torch.uint8).permute(0, 2, 3, 1)


def test_patches_and_pictures_are_the_same_numbers() -> None:
    frames = torch.randn(2, 4, 64, 64, 3)
    patches = to_patches(frames)
    assert patches.shape == (2, 64, 768)
    assert torch.equal(from_patches(patches, 8, 8), frames)
    assert torch.equal(patches[0, 9, :192].reshape(8, 8, 3), frames[0, 0, 8:16, 8:16])


def test_bytes_survive_the_unit_range() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit(values)), values)


def test_neighbourhood_lists_the_nine_cells() -> None:
    x = torch.arange(64.0).reshape(1, 64, 1)
    around = neighbourhood(x, 8, 8)
    assert around[0, 9].tolist() == [0, 1, 2, 8, 9, 10, 16, 17, 18]
    assert around[0, 0].tolist() == [0, 0, 0, 0, 0, 1, 0, 8, 9]


def test_a_still_clip_has_no_motion_and_comes_back(codec: MotionCodec) -> None:
    still = picture()
    latents = codec.encode(still[:, None].expand(-1, 9, -1, -1, -1))
    assert latents.shape == (1, 16, 3, 8, 8)
    assert latents[:, :, 1:].abs().max() < 0.1
    back = codec.decode(latents, still)
    assert (back.int() - still[:, None].int()).abs().max() <= 2


def test_motion_is_found_and_applied() -> None:
    still = picture(3)
    shifted = torch.roll(still, (0, 2), (1, 2))[0].numpy()
    motion = estimate_motion(shifted[None], still[0].numpy())
    inner = motion[0, 2:6, 2:6]
    assert inner[..., 0].median().item() == pytest.approx(-2.0, abs=0.3)
    assert inner[..., 1].median().item() == pytest.approx(0.0, abs=0.3)
    vectors = torch.tensor([-2.0, 1.0]).expand(1, 1, 8, 8, 2)
    moved = warp(still.float(), vectors)[0, 0]
    want = torch.roll(still, (-1, 2), (1, 2))[0].float()
    torch.testing.assert_close(moved[4:60, 4:60], want[4:60, 4:60], atol=1e-2, rtol=0)


def test_brightness_is_not_taken_for_motion() -> None:
    still = picture(1)[0].numpy()
    dark = (still * 0.7).astype(np.uint8)
    assert estimate_motion(dark[None], still).abs().median() < 0.1


def test_a_residual_in_the_span_comes_back(codec: MotionCodec) -> None:
    still = torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)
    coded = torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(2)) * 0.8
    pixels = from_patches(codec.decode_residual(coded), 8, 8)
    clip = torch.cat((still[:, None], to_bytes(to_unit(still)[:, None] + pixels)), 1)
    motion = torch.zeros(1, 1, 64, 8)
    rest = codec.residual(clip, still, motion)
    found = torch.einsum("bkpv,pvc->bkpc", rest, codec.residual_encode)[:, 0]
    torch.testing.assert_close(found, coded, atol=0.1, rtol=0)


def test_chunks_are_causal(codec: MotionCodec) -> None:
    clip = torch.stack([picture(seed)[0] for seed in range(9)])[None]
    other = clip.clone()
    other[:, 5:] = picture(20)[:, None]
    one, two = codec.encode(clip), codec.encode(other)
    assert torch.equal(one[:, :, :2], two[:, :, :2])
    assert not torch.equal(one[:, :, 2], two[:, :, 2])


def test_motion_channels_are_x_and_y_of_four_frames_in_turn() -> None:
    still = picture(4)
    frames = torch.stack([torch.roll(still[0], step, 1) for step in (0, 1, 2, 3)])[None]
    motion = chunk_motion(frames, still)
    assert motion.shape == (1, 1, 64, 8)
    middle = motion[0, 0].reshape(8, 8, 4, 2)[2:6, 2:6].flatten(0, 1).median(0).values
    torch.testing.assert_close(middle[:, 0], -torch.arange(4.0), atol=0.4, rtol=0)
    assert middle[:, 1].abs().max() < 0.3


def test_without_a_reference_frame_0_stands_in(codec: MotionCodec) -> None:
    still = picture(5)
    latents = codec.encode(still[:, None].expand(-1, 5, -1, -1, -1))
    alone = codec.decode(latents)
    assert alone.shape == (1, 5, 64, 64, 3)
    given = codec.decode(latents, alone[:, 0])
    assert (alone.int() - given.int()).abs().max() <= 2
