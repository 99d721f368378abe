"""What the base of a nano Thinker learns to read: dense targets and plain questions.

The targets are measurements of a puppet: where its head and mouth are, how they move, what was
done to its pixels, how the mouth differs from what the voice asks for. None is a rating and none
is one of the critic's three questions, but a base that has seen them is no blank model: quote
`SEEN` beside its figures.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ft2.critic.arrays import CURVES, MOUTH, POSE, Batch
from ft2.qwen.spec import QwenSpec

SEEN = (
    "puppet clips with their driving curves (head pose, mouth, eyes and brows, with velocities and "
    "accelerations), frame differences, kinds of defects, the curves that the voice asks for and "
    "their distance to those shown, and plain questions about mouth, voice, light and pose; "
    "never a rating and never one of the critic's three questions"
)

PLAIN_QUESTIONS = (
    "Is the mouth open at the end?",
    "Is the mouth wide at the start?",
    "Is the voice loud at the end?",
    "Is the voice loud at the start?",
    "Is the picture bright?",
    "Is the head turned to the left?",
    "Is the head tilted to the right?",
    "Are the brows raised?",
    "Does the head move up?",
)


@dataclass(frozen=True)
class Scale:
    """Mean and spread of the targets over the training clips."""

    curves: tuple[Tensor, Tensor]
    """Curves, each [C]."""
    velocity: Tensor
    """Spread of the frame-to-frame change of the curves [C]."""
    acceleration: Tensor
    """Spread of the change of the change [C]."""


_CURVE_WEIGHTS = torch.tensor(
    [3.0, 2.0, 1.0, 1.0] + [0.5, 0.5] + [1.0] * len(POSE) + [0.2] * (len(CURVES) - 11)
)
"""Mouth first, then the pose; eyes and brows less, shoulders and background hardly."""


def fit_scale(shown: Tensor) -> Scale:
    """Return the scale of curves [N, F, C]."""
    flat = shown.flatten(0, 1)
    velocity, acceleration = shown.diff(dim=1), shown.diff(dim=1).diff(dim=1)
    return Scale(
        (flat.mean(0), flat.std(0) + 1e-4),
        velocity.flatten(0, 1).std(0) + 1e-4,
        acceleration.flatten(0, 1).std(0) + 1e-4,
    )


def picture_targets(batch: Batch, scale: Scale) -> dict[str, Tensor]:
    """Return targets per two-frame patch, each [B, P, D].

    ``curves``: all curves of both frames; ``motion``: pose change inside the patch, into the patch,
    and its acceleration; ``change``: log mean absolute pixel change inside and into the patch.
    """
    shown = batch.shown
    if shown.shape[1] % 2:
        shown = torch.cat([shown, shown[:, -1:]], dim=1)
    pose = shown[:, :, list(POSE)]
    velocity = F.pad(pose.diff(dim=1), (0, 0, 1, 0)) / scale.velocity[list(POSE)]
    bend = F.pad(velocity.diff(dim=1), (0, 0, 1, 0))
    bend = bend * (scale.velocity / scale.acceleration)[list(POSE)]
    pixels = batch.pixels[:, :, ::2, ::2].float()
    change = (pixels.diff(dim=1).abs().mean((2, 3, 4)) + 0.05).log()
    change = F.pad(change, (1, 0), value=0.0)[..., None]
    return {
        "curves": _pair((shown - scale.curves[0]) / scale.curves[1]),
        "motion": _pair(torch.cat([velocity, bend], dim=2)).clamp(-6, 6),
        "change": _pair(change),
    }


def _pair(x: Tensor) -> Tensor:
    """Return [B, T, D] as [B, T/2, 2D]."""
    return x.reshape(x.shape[0], x.shape[1] // 2, -1)


def voice_targets(batch: Batch, scale: Scale, num_tokens: int) -> dict[str, Tensor]:
    """Return targets per audio token, each [B, A, D]: mouth asked for, shown, their gap."""
    mouth = list(MOUTH)
    mean, spread = scale.curves[0][mouth], scale.curves[1][mouth]
    asked = _stretch((batch.spoken[:, :, mouth] - mean) / spread, num_tokens)
    shown = _stretch((batch.shown[:, :, mouth] - mean) / spread, num_tokens)
    gap = shown - asked
    smooth = F.avg_pool1d(gap.abs().transpose(1, 2), 9, 1, 4, count_include_pad=False)
    return {
        "asked": torch.cat([asked, batch.loudness[..., None] + 3], dim=2),
        "shown": shown,
        "gap": torch.cat([gap, gap.abs(), smooth.transpose(1, 2)], dim=2),
    }


def _stretch(x: Tensor, num_tokens: int) -> Tensor:
    """Return [B, F, D] sampled at the centres of `num_tokens` equal parts."""
    return F.interpolate(x.transpose(1, 2), num_tokens, mode="linear").transpose(1, 2)


def summary_targets(batch: Batch, scale: Scale) -> Tensor:
    """Return measurements of the whole clip [B, 10].

    Speed, its peak and share of rests; acceleration and its peak; spread of the pose; mean squared
    distance of mouth and voice per mouth curve; all but the rests in logarithms.
    """
    pose = batch.shown[:, :, list(POSE)] / scale.velocity[list(POSE)]
    velocity = pose.diff(dim=1)
    speed = velocity.square().mean(2).sqrt()
    bend = velocity.diff(dim=1).square().mean(2).sqrt()
    mouth = list(MOUTH)
    gap = (batch.shown - batch.spoken)[:, :, mouth] / scale.curves[1][mouth]
    parts = [
        (speed.mean(1) + 0.05).log(),
        (speed.amax(1) + 0.05).log(),
        (speed < 0.05).float().mean(1) * 2,
        (bend.mean(1) + 0.05).log(),
        (bend.amax(1) + 0.05).log(),
        (pose.std(1).mean(1) + 0.05).log(),
    ]
    return torch.cat([torch.stack(parts, 1), (gap.square().mean(1) + 0.02).log() / 2], dim=1)


def plain_answers(batch: Batch) -> Tensor:
    """Return float [B, 9]: the quantity behind each of `PLAIN_QUESTIONS`; Yes above the median."""
    shown, third = batch.shown, max(1, batch.shown.shape[1] // 5)
    bright = batch.pixels[:, ::4, ::4, ::4].float().mean((1, 2, 3, 4))
    sound = batch.loudness
    part = max(1, sound.shape[1] // 4)
    return torch.stack(
        [
            shown[:, -third:, 0].mean(1),
            shown[:, :third, 1].mean(1),
            sound[:, -part:].mean(1),
            sound[:, :part].mean(1),
            bright,
            shown[:, :, 6].mean(1),
            shown[:, :, 8].mean(1),
            shown[:, :, 5].mean(1),
            shown[:, -third:, 7].mean(1) - shown[:, :third, 7].mean(1),
        ],
        dim=1,
    )


class Heads(nn.Module):
    """Linear readers on tower tokens and on a middle layer of the language model."""

    def __init__(self, spec: QwenSpec, num_curves: int, num_kinds: int) -> None:
        """Make heads for `num_curves` curves and `num_kinds` kinds of defect."""
        super().__init__()
        hidden = spec.text.hidden_size
        pose, mouth = len(POSE), len(MOUTH)
        self.face_rows = spec.view.face_size // spec.vision.patch_size // spec.vision.merge_size
        self.rows = spec.view.height // spec.vision.patch_size // spec.vision.merge_size
        sizes = {"curves": 2 * num_curves, "motion": 4 * pose, "change": 2, "kinds": num_kinds}
        self.tower = nn.ModuleDict({k: nn.Linear(2 * hidden, n) for k, n in sizes.items()})
        self.middle = nn.ModuleDict({k: nn.Linear(2 * hidden, n) for k, n in sizes.items()})
        voice = {"asked": mouth + 1, "shown": mouth, "gap": 3 * mouth}
        self.voice = nn.ModuleDict({k: nn.Linear(hidden, n) for k, n in voice.items()})
        self.heard = nn.Linear(hidden, mouth + 1)
        self.summary = nn.Linear(hidden, 6 + mouth + num_kinds)

    def pool(self, tokens: Tensor, times: int) -> Tensor:
        """Return [B, P, 2 * hidden]: mean of the face's tokens and of the mouth's, per patch."""
        grid = tokens.view(tokens.shape[0], times, self.rows, -1, tokens.shape[-1])
        face, mouth = grid[:, :, : self.face_rows], grid[:, :, self.face_rows :]
        return torch.cat([face.mean((2, 3)), mouth.mean((2, 3))], dim=-1)


def picture_loss(
    readers: nn.ModuleDict, pooled: Tensor, targets: dict[str, Tensor], kinds: Tensor
) -> dict[str, Tensor]:
    """Return the losses of the picture heads on pooled tokens [B, P, 2 * hidden]."""
    losses = {}
    for name, target in targets.items():
        error = F.smooth_l1_loss(readers[name](pooled), target, reduction="none")
        weight = _CURVE_WEIGHTS.repeat(2) if name == "curves" else torch.ones(())
        losses[name] = (error * weight.to(error.device)).mean()
    guess = readers["kinds"](pooled).float()
    losses["kinds"] = F.binary_cross_entropy_with_logits(guess, _spread(kinds, guess))
    return losses


def _spread(kinds: Tensor, like: Tensor) -> Tensor:
    return kinds[:, None].expand_as(like)


def voice_loss(heads: Heads, tokens: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the losses of the voice heads on the middle layer's audio tokens [B, A, hidden]."""
    return {
        name: F.smooth_l1_loss(heads.voice[name](tokens), target)
        for name, target in targets.items()
    }
