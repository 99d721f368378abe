"""Audio windows against the published table for 81 frames, and their general invariants."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.wan.audio import (
    audio_windows,
    cut_windows,
    heard_audio,
    positions,
    raw_ranges,
    whole_clip,
)


@pytest.mark.parametrize(
    ("tokens", "first", "second", "third", "last", "width", "lengths"),
    [
        (175, (-7, 1), (1, 9), (10, 18), (165, 173), 17, [6, 14, *[17] * 18, 14]),
        (161, (-5, 1), (1, 7), (9, 15), (153, 159), 15, [6, 12, *[15] * 18, 12]),
    ],
)
def test_table_for_81_frames(tokens, first, second, third, last, width, lengths) -> None:
    ranges = raw_ranges(tokens, 81)
    assert [ranges[0], ranges[1], ranges[2], ranges[-1]] == [first, second, third, last]
    windows = audio_windows(tokens, 81)
    assert windows.width == width
    assert list(windows.lengths) == lengths


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 300))
def test_windows_hold_the_tokens_they_name(groups: int, extra: int) -> None:
    num_frames = 4 * groups + 1
    num_tokens = num_frames + extra
    tokens = torch.arange(1.0, num_tokens + 1)[None, :, None]
    cut, mask = cut_windows(tokens, num_frames)
    windows = audio_windows(num_tokens, num_frames)
    assert cut.shape == (1, groups + 1, windows.width, 1)
    for index, (start, length) in enumerate(zip(windows.starts, windows.lengths, strict=True)):
        real = torch.arange(start + 1.0, start + length + 1)
        assert torch.equal(cut[0, index, :length, 0], real)
        assert not cut[0, index, length:].any()
        assert mask[0, index].sum() == length >= 1


@pytest.mark.parametrize(("tokens", "frames"), [(40, 1), (40, 20), (0, 21)])
def test_impossible_clips_are_refused(tokens: int, frames: int) -> None:
    with pytest.raises(ValueError, match="4n"):
        raw_ranges(tokens, frames)


def test_whole_clip_is_one_window() -> None:
    tokens = torch.randn(2, 7, 3)
    audio, mask = whole_clip(tokens)
    assert torch.equal(audio[:, 0], tokens)
    assert mask.shape == (2, 1, 7)
    assert mask.all()


def test_positions_are_counted_within_the_window() -> None:
    tokens = torch.zeros(1, 42, 2)
    audio, mask = heard_audio(tokens, 21, whole=False, place=True)
    codes = audio[0, :, :, 2:]
    inner = positions(torch.arange(17.0))
    for frame in range(2, 5):
        torch.testing.assert_close(codes[frame], inner)
    first = raw_ranges(42, 21)[1][0] - 4
    torch.testing.assert_close(codes[1, : int(mask[0, 1].sum())], inner[-first:])
    whole, _ = heard_audio(tokens, 21, whole=True, place=True)
    torch.testing.assert_close(whole[0, 0, :, 2:], positions(torch.arange(42.0)))
