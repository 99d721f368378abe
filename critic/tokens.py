"""Tower tokens of rated clips, kept in memory or made when they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ft2.critic.data import Rating
from ft2.critic.negatives import spoil
from ft2.critic.vary import Variation
from ft2.qwen import towers
from ft2.qwen.spec import QwenSpec
from ft2.qwen.view import ClipView, read_views
from ft2.runs import Progress, Silent

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

Strings = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Critic:
    """A Thinker with what belongs to it."""

    thinker: "Qwen2_5OmniThinkerForConditionalGeneration"
    processor: "Qwen2_5OmniProcessor"
    spec: QwenSpec


@dataclass(frozen=True)
class Rows:
    """What is known of N clip windows."""

    labels: Tensor
    """[N, Q]: 1 Yes, 0 No, -1 unrated, int64; or opinion scores, float32."""
    clip: Tensor
    """int64 [N]: which clip of the list a window is of."""
    identity_ids: Strings
    """str [N]."""
    utterances: Strings
    """str [N]: whose voice says what."""
    sources: Strings
    """str [N]: who rated."""

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.labels)

    def first_windows(self) -> Strings:
        """Return the number of the first window of each clip, int64 [clips]."""
        return np.unique(self.clip.numpy(), return_index=True)[1]


class Tokens(Protocol):
    """Windows of rated clips whose tower tokens can be had."""

    @property
    def rows(self) -> Rows:
        """What is known of the windows."""

    def take(self, pictures: Tensor, sounds: Tensor) -> tuple[Tensor, Tensor]:
        """Return video tokens [B, V, hidden] and audio tokens [B, A, hidden] of windows [B]."""


@dataclass(frozen=True)
class CachedTokens:
    """Tokens in memory."""

    rows: Rows
    video: Tensor
    """[N, V, hidden]."""
    audio: Tensor
    """[N, A, hidden]."""

    def take(self, pictures: Tensor, sounds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of some windows, each with its own or another window's sound."""
        return self.video[pictures], self.audio[sounds]


@dataclass(frozen=True)
class LazyTokens:
    """Tokens that are made from the files each time; one window a clip."""

    rows: Rows
    critic: Critic
    ratings: tuple[Rating, ...]
    seed: int
    texture: float = 0.0

    def take(self, pictures: Tensor, sounds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of some windows, each with its own or another window's sound."""
        count = len(self.ratings)
        parts = []
        for picture, sound in zip(pictures.tolist(), sounds.tolist(), strict=True):
            seen, heard = self._view(picture % count), self._view(sound % count)
            view = ClipView(seen.streams, heard.audio)
            varied = picture >= count
            rng = torch.Generator().manual_seed(self.seed * 1_000_003 + picture)
            change = Variation(rng, self.texture) if varied else None
            parts.append(encode_views(self.critic, [view], variation=change))
        return torch.cat([video for video, _ in parts]), torch.cat([audio for _, audio in parts])

    def _view(self, number: int) -> ClipView:
        return rated_views(self.ratings[number], self.critic.spec, 1)[0]


def rated_views(rating: Rating, spec: QwenSpec, max_windows: int = 3) -> list[ClipView]:
    """Return the views of a rated clip, spoilt where the rating says so."""
    views = read_views(rating.video, spec, max_windows)
    if rating.spoilt is None:
        return views
    kind, seed = rating.spoilt
    rate = spec.clip.sample_rate
    return [spoil(v, kind, np.random.default_rng([seed, n]), rate) for n, v in enumerate(views)]


@torch.no_grad()
def encode_views(
    critic: Critic, views: Sequence[ClipView], *, variation: Variation | None = None
) -> tuple[Tensor, Tensor]:
    """Return tower tokens (video [B, V, hidden], audio [B, A, hidden]) of clip views.

    Args:
        critic: The model; only its frozen towers run.
        views: One or more.
        variation: Changes the clips at random; None leaves them as they are.
    """
    device = next(critic.thinker.parameters()).device
    state = None if variation is None else variation.rng.get_state()
    parts = []
    for number, spec in enumerate(critic.spec.stream_specs):
        pixels = torch.from_numpy(np.stack([view.streams[number] for view in views]))
        if variation is not None and state is not None:
            variation.rng.set_state(state)  # every stream of a clip is varied alike
            pixels = variation(pixels)
        patches = towers.patchify(pixels, spec, critic.processor).to(device)
        parts.append(towers.video_features(critic.thinker, patches, spec))
    video = torch.cat(parts, dim=1)
    mel, _ = towers.mel_features(critic.processor, [view.audio for view in views])
    return video, towers.audio_features(critic.thinker, mel.to(device))


def silenced(critic: Critic, tokens: CachedTokens) -> CachedTokens:
    """Return the same windows with a sound of zeros, as a silent track would have it."""
    silence = np.zeros(critic.spec.clip.num_samples, np.float32)
    mel, _ = towers.mel_features(critic.processor, [silence])
    with torch.no_grad():
        heard = towers.audio_features(critic.thinker, mel.to(tokens.audio.device))
    return CachedTokens(tokens.rows, tokens.video, heard.expand_as(tokens.audio))


def encode_ratings(
    critic: Critic,
    ratings: Sequence[Rating],
    *,
    copies: int = 0,
    seed: int = 0,
    texture: float = 0.0,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> CachedTokens:
    """Return the tokens of all windows of rated clips, varied copies after the clips.

    Args:
        critic: The model.
        ratings: One or more.
        copies: Varied copies of every window.
        seed: Seeds the variation.
        texture: Share of the copies whose texture is changed.
        batch_size: Windows a forward pass.
        progress: Told how far it is.

    Raises:
        UsageError: A clip cannot be read, or shows no face.
    """
    progress = progress or Silent()
    variation = Variation(torch.Generator().manual_seed(seed), texture)
    views: list[ClipView] = []
    owners: list[int] = []
    video: list[list[Tensor]] = [[] for _ in range(copies + 1)]
    audio: list[Tensor] = []
    for number, rating in enumerate(ratings):
        found = rated_views(rating, critic.spec)
        views += found
        owners += [number] * len(found)
        if len(views) >= batch_size or number + 1 == len(ratings):
            for copy, parts in enumerate(video):
                seen, heard = encode_views(critic, views, variation=variation if copy else None)
                parts.append(seen)
            audio.append(heard)
            views.clear()
            progress.update("read clips", number + 1, len(ratings))
    return CachedTokens(
        rows=_rows(ratings, owners * len(video)),
        video=torch.cat([part for parts in video for part in parts]),
        audio=torch.cat(audio * len(video)),
    )


def lazy_ratings(
    critic: Critic,
    ratings: Sequence[Rating],
    *,
    copies: int = 0,
    seed: int = 0,
    texture: float = 0.0,
) -> LazyTokens:
    """Return tokens that are made when asked for, of one window a clip; see `encode_ratings`."""
    rows = _rows(ratings, list(range(len(ratings))) * (copies + 1))
    return LazyTokens(rows, critic, tuple(ratings), seed, texture)


def _rows(ratings: Sequence[Rating], owners: list[int]) -> Rows:
    chosen = [ratings[i] for i in owners]
    labels = [[-1 if label is None else +label for label in r.labels] for r in chosen]
    return Rows(
        labels=torch.tensor(labels),
        clip=torch.tensor(owners),
        identity_ids=np.array([r.identity_id for r in chosen]),
        utterances=np.array([r.utterance for r in chosen]),
        sources=np.array([r.source for r in chosen]),
    )
