"""From audio tokens to one window of tokens per latent frame (FantasyTalking, frame level).

Pure arithmetic. The rule is the released one (Fantasy-AMAP/fantasy-talking, ``infer.py`` and
``model.py``), with its two faults avoided: padding is masked instead of attended, and the
audio is padded with silence to the full clip before feature extraction, never stretched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ft2.wan.spec import POSITION_PERIODS

MARGIN_TOKENS = 4
"""Tokens by which every window is widened on both sides."""


@dataclass(frozen=True)
class Windows:
    """Token windows of the latent frames of one clip.

    Attributes:
        starts: first token of each window after clipping to the clip, [F].
        lengths: number of real tokens in each window (``k_lens``), [F].
        width: common width to which windows are padded on the right.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    width: int


def raw_ranges(num_tokens: int, num_frames: int) -> list[tuple[int, int]]:
    """Return the inclusive token range of each latent frame before widening and clipping.

    Args:
        num_tokens: audio tokens of the whole clip, L.
        num_frames: video frames, 4n + 1 with n >= 1.

    Raises:
        ValueError: if ``num_frames`` is not 4n + 1 or below 5, or there are no tokens.
    """
    if num_frames < 5 or num_frames % 4 != 1 or num_tokens < 1:
        raise ValueError(f"need 4n + 1 >= 5 frames and tokens, got {num_frames} and {num_tokens}")
    per_frame = num_tokens / num_frames
    half = int(per_frame * 4 / 2)
    ranges = []
    for index in range(1, (num_frames - 1) // 4 + 1):
        begin, end = per_frame * ((index - 1) * 4 + 1), per_frame * (index * 4 + 1)
        centre = int((begin + end) / 2) - 1
        ranges.append((centre - half, centre + half))
    first_start = ranges[0][0]
    return [(-(2 * half - first_start), first_start), *ranges]


def audio_windows(num_tokens: int, num_frames: int) -> Windows:
    """Return the widened, clipped windows of a clip.

    81 frames at 23 a second have 175 tokens:

    >>> windows = audio_windows(175, 81)
    >>> windows.width, windows.lengths[:3], windows.lengths[-2:]
    (17, (6, 14, 17), (17, 14))
    """
    ranges = raw_ranges(num_tokens, num_frames)
    width = ranges[1][1] - ranges[1][0] + 1 + 2 * MARGIN_TOKENS
    starts, lengths = [], []
    for begin, end in ranges:
        start = max(begin - MARGIN_TOKENS, 0)
        stop = min(end + MARGIN_TOKENS, num_tokens - 1)
        if stop < start:
            raise ValueError(f"{num_tokens} tokens leave an empty window for {num_frames} frames")
        starts.append(start)
        lengths.append(stop - start + 1)
    return Windows(tuple(starts), tuple(lengths), width)


def cut_windows(tokens: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
    """Cut token features into per-latent-frame windows, zero-padded on the right.

    Args:
        tokens: features of the whole clip, [B, L, D].
        num_frames: video frames of the clip.

    Returns:
        Windows [B, F, W, D] and a boolean mask [B, F, W], True where a token is real.
    """
    windows = audio_windows(tokens.shape[1], num_frames)
    offsets = torch.arange(windows.width, device=tokens.device)
    starts = torch.tensor(windows.starts, device=tokens.device)[:, None]
    lengths = torch.tensor(windows.lengths, device=tokens.device)[:, None]
    mask = offsets[None] < lengths
    index = (starts + offsets[None]).clamp_max(tokens.shape[1] - 1)
    cut = tokens[:, index] * mask[None, :, :, None].to(tokens.dtype)
    return cut, mask[None].expand(tokens.shape[0], -1, -1)


def whole_clip(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return clip-level audio: one window [B, 1, L, D] that every video token attends to."""
    mask = torch.ones(tokens.shape[0], 1, tokens.shape[1], dtype=torch.bool, device=tokens.device)
    return tokens[:, None], mask


def positions(time: Tensor) -> Tensor:
    """Return sine and cosine of times in tokens, [...] to [..., 2 * POSITION_PERIODS].

    Periods are 4, 8, 16, ... tokens. Features without a sense of time (log-mel) need them:
    attention alone could not order a window.
    """
    periods = 4.0 * 2.0 ** torch.arange(POSITION_PERIODS, device=time.device)
    angle = 2 * torch.pi * time[..., None] / periods
    return torch.cat((angle.sin(), angle.cos()), -1)


def heard_audio(
    tokens: Tensor, num_frames: int, *, whole: bool, place: bool
) -> tuple[Tensor, Tensor]:
    """Return what the transformer hears of whole-clip tokens, and which of it is real.

    Args:
        tokens: features of the whole clip, [B, L, D].
        num_frames: video frames of the clip.
        whole: one window of everything instead of one for each latent frame.
        place: append each token's time: within its window, or within the clip if ``whole``.

    Returns:
        Audio [B, F, W, D (+ 2 * POSITION_PERIODS)] (F = 1 if ``whole``) and mask [B, F, W].
    """
    audio, mask = whole_clip(tokens) if whole else cut_windows(tokens, num_frames)
    if not place:
        return audio, mask
    time = torch.arange(audio.shape[2], dtype=torch.float32, device=tokens.device)[None]
    if not whole:
        windows = audio_windows(tokens.shape[1], num_frames)
        starts = torch.tensor(windows.starts, dtype=torch.float32, device=tokens.device)
        ranges = raw_ranges(tokens.shape[1], num_frames)
        first = torch.tensor([begin - MARGIN_TOKENS for begin, _ in ranges], device=tokens.device)
        time = time + (starts - first)[:, None]
    code = positions(time).to(audio.dtype) * mask[0, :, :, None].to(audio.dtype)
    return torch.cat((audio, code.expand(audio.shape[0], -1, -1, -1)), 3), mask
