"""Long sound: windows that cover everything once, latents that are kept, colours that stay."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from generator_toys import TINY
from hypothesis import given
from hypothesis import strategies as st

from ft2.errors import UsageError
from ft2.generator.config import GenerateConfig, GuidanceConfig
from ft2.generator.sample import generate_batch
from ft2.generator.windows import (
    Latents,
    colour_statistics,
    match_colour,
    num_frames,
    sample_long,
    window_audio,
    window_starts,
)
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model

CLIP = TINY.clip
CONFIG = GenerateConfig(steps=2, shift=2.0, guidance=GuidanceConfig(prompt=1, audio=2))


@given(frames=st.integers(5, 400), chunks=st.integers(1, 20), share=st.integers(0, 19))
def test_windows_show_every_frame_exactly_once(frames: int, chunks: int, share: int) -> None:
    clip = CLIP.model_copy(update={"num_frames": 4 * chunks + 1})
    overlap = 4 * min(share, chunks - 1) + 1
    starts = window_starts(frames, clip, overlap)
    shown: list[int] = []
    for number, start in enumerate(starts):
        shown += range(start + (overlap if number else 0), start + clip.num_frames)
    assert shown[:frames] == list(range(frames))
    assert len(shown) - frames < max(clip.num_frames, 5), "no window is made for nothing"


def test_an_overlap_that_leaves_nothing_new_is_refused() -> None:
    with pytest.raises(UsageError, match="fills a window"):
        window_starts(100, CLIP, CLIP.num_frames)


def test_a_sound_fills_frames_to_its_end() -> None:
    assert num_frames(11520, CLIP) == 9
    assert num_frames(11521, CLIP) == 10
    assert num_frames(1, CLIP) == 5


def test_windows_hear_the_sound_of_their_frames() -> None:
    audio = np.arange(40000, dtype=np.float32)
    part = window_audio(audio, 8, CLIP)
    assert part[0] == 8 * 16000 / 12.5
    assert len(part) == CLIP.num_samples
    assert window_audio(audio, 30, CLIP)[-1] == 0


def test_colours_are_matched_by_mean_and_deviation() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(90, 150, (4, 16, 16, 3)).astype(np.uint8)
    wanted = (np.array([120.0, 110.0, 130.0]), np.array([15.0, 20.0, 10.0]))
    for found, want in zip(colour_statistics(match_colour(frames, wanted)), wanted, strict=True):
        np.testing.assert_allclose(found, want, atol=0.1)


@pytest.fixture(scope="module")
def model(trained: Path) -> TalkingModel:
    return load_talking_model(WanSpec(weights=str(trained / "model")))


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    return np.random.default_rng(0).normal(size=30000).astype(np.float32) * 0.1


@pytest.fixture(scope="module")
def cond(model: TalkingModel, audio: np.ndarray) -> Conditioning:
    portrait = np.random.default_rng(1).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    return model.encode_condition(portrait, window_audio(audio, 0, CLIP), "one")


def test_one_window_is_a_plain_clip(model: TalkingModel, cond: Conditioning, audio: np.ndarray):
    want = generate_batch(model, cond, [("a", 3)], CONFIG)[0]
    got = sample_long(model, cond, audio, 9, ("a", 3), CONFIG)
    assert np.array_equal(got, want)
    assert np.array_equal(sample_long(model, cond, audio, 6, ("a", 3), CONFIG), want[:6])


def test_windows_join_without_a_jump(model: TalkingModel, cond: Conditioning, audio: np.ndarray):
    """The first new frame is as near to the last as frames in a window are to each other."""
    config = CONFIG.model_copy(update={"steps": 6})
    frames = sample_long(model, cond, audio, 17, ("a", 0), config).astype(float)
    assert frames.shape == (17, 64, 64, 3)
    steps = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    alone = sample_long(
        model, cond, audio, 9, ("b", 0), config
    ).astype(float)  # fmt: skip
    assert steps[8] < 2 * steps.max(initial=0.0, where=np.arange(16) != 8)
    assert np.abs(frames[9] - frames[8]).mean() < np.abs(alone[0] - frames[8]).mean() + steps.max()


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [(0, 1), (1, 0), (1, 1)])
def test_a_stop_anywhere_and_a_resume_change_nothing(
    model: TalkingModel, cond: Conditioning, audio: np.ndarray, tmp_path: Path, at: tuple[int, int]
) -> None:
    whole = sample_long(model, cond, audio, 14, ("a", 0), CONFIG)

    def stop(window: int, step: int) -> None:
        if (window, step) == at:
            raise Stopped

    latents = Latents()
    with pytest.raises(Stopped):
        sample_long(model, cond, audio, 14, ("a", 0), CONFIG, None, latents, stop)
    path = tmp_path / "kept.safetensors"
    assert latents.save(path, "key")
    with pytest.raises(UsageError, match="other inputs or settings"):
        Latents.load(path, "another")
    steps: list[tuple[int, int]] = []
    again = sample_long(
        model, cond, audio, 14, ("a", 0), CONFIG, None, Latents.load(path, "key"),
        lambda window, step: steps.append((window, step)),
    )  # fmt: skip
    assert np.array_equal(again, whole)
    assert steps[0] == at, "no step is taken twice"


def test_carried_frames_become_the_conditions_of_a_model_without_repeat(
    model: TalkingModel, cond: Conditioning
) -> None:
    """Wan's way: mask 1 and image latents on every carried latent frame."""
    latent = model.architecture.latent.model_copy(update={"fill": "zeros"})
    wan = copy.copy(model)
    wan.architecture = model.architecture.model_copy(update={"latent": latent})
    frames = torch.randint(0, 255, (1, 5, 64, 64, 3), dtype=torch.uint8)
    y = wan.given_latents(frames)
    assert y[0, 0, :, 0, 0].tolist() == [1, 1, 0]
    alone = wan.given_latents(frames[:, :1])
    torch.testing.assert_close(y[:, 4:, 0], alone[:, 4:, 0])
    assert (y[:, 4:, 1] - alone[:, 4:, 1]).abs().max() > 0
