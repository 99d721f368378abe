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


@dataclass(frozen=True)
class PictureTargets:
    """What can be measured on the picture; B clips, P two-frame patches, S tokens a patch."""

    curves: Tensor
    """[B, P, 2C]: all curves of both frames."""
    inside: Tensor
    """[B, P, 5]: pose change from a patch's first frame to its second."""
    into: Tensor
    """[B, P, 15]: pose change into the patch, and the acceleration at both frames."""
    change: Tensor
    """[B, P, S, 2]: log mean absolute pixel change inside the patch and into it."""
    texture: Tensor
    """[B, P, S, 16]: colour, and log energies of detail at four scales and at block edges, of a
    patch's first frame, then of its second."""
    drift: Tensor
    """[B, P, S, 8]: texture of the second frame less that of the clip's first."""


def picture_targets(batch: Batch, scale: Scale, cell: int) -> PictureTargets:
    """Return the targets of a batch; `cell` is the pixels of a token's side."""
    shown = batch.shown
    if shown.shape[1] % 2:
        shown = torch.cat([shown, shown[:, -1:]], dim=1)
    pose = list(POSE)
    velocity = F.pad(shown[:, :, pose].diff(dim=1), (0, 0, 1, 0)) / scale.velocity[pose]
    bend = F.pad(velocity.diff(dim=1), (0, 0, 1, 0))
    bend = bend * (scale.velocity / scale.acceleration)[pose]
    velocity, bend = velocity.clamp(-6, 6), bend.clamp(-6, 6)
    grey = batch.pixels[..., 1].float()
    change = F.pad(_cells(grey.diff(dim=1).abs(), cell), (0, 0, 1, 0))
    change = (change + 0.2).log()
    texture = _texture(batch.pixels.float(), cell)
    return PictureTargets(
        curves=_pair((shown - scale.curves[0]) / scale.curves[1]),
        inside=velocity[:, 1::2],
        into=torch.cat([velocity[:, 0::2], _pair(bend)], dim=2),
        change=torch.stack([change[:, 1::2], change[:, 0::2]], dim=-1),
        texture=torch.cat([texture[:, 0::2], texture[:, 1::2]], dim=-1),
        drift=texture[:, 1::2] - texture[:, :1],
    )


def _cells(x: Tensor, cell: int) -> Tensor:
    """Return means [B, T, S] over the token cells of [B, T, H, W]."""
    return F.avg_pool2d(x, cell).flatten(2)


def _texture(pixels: Tensor, cell: int) -> Tensor:
    """Return [B, T, S, 8] of float pixels [B, T, H, W, 3]: see `PictureTargets.texture`."""
    colour = [_cells(pixels[..., c], cell) / 64 - 2 for c in range(3)]
    grey = pixels[..., 1]
    edges = F.pad(grey.diff(dim=3).abs(), (1, 0))
    at_blocks = edges[..., ::8].repeat_interleave(8, dim=3)
    bend = F.pad(edges.diff(dim=3).abs(), (1, 0))
    half = F.avg_pool2d(grey, 2)
    quarter = F.avg_pool2d(half, 2)
    energies = [
        _cells(edges, cell),
        _cells(bend, cell),
        _cells(F.pad(half.diff(dim=3).abs(), (1, 0)), cell // 2),
        _cells(F.pad(quarter.diff(dim=3).abs(), (1, 0)), cell // 4),
        _cells(at_blocks, cell),
    ]
    return torch.stack(colour + [(energy + 0.5).log() - 1.5 for energy in energies], dim=-1)


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
        hidden, mouth, pose = spec.text.hidden_size, len(MOUTH), len(POSE)
        self.cell = spec.vision.patch_size * spec.vision.merge_size
        self.face_rows = spec.view.face_size // self.cell
        self.rows = spec.view.height // self.cell
        sizes = {"curves": 2 * num_curves, "inside": pose, "kinds": num_kinds}
        self.tower = nn.ModuleDict({k: nn.Linear(2 * hidden, n) for k, n in sizes.items()})
        self.tower.update({"change": nn.Linear(hidden, 1), "texture": nn.Linear(hidden, 16)})
        sizes |= {"into": 3 * pose}
        self.middle = nn.ModuleDict({k: nn.Linear(2 * hidden, n) for k, n in sizes.items()})
        self.middle.update({"change": nn.Linear(hidden, 2), "texture": nn.Linear(hidden, 16)})
        self.middle["drift"] = nn.Linear(hidden, 8)
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
    heads: Heads, readers: nn.ModuleDict, tokens: Tensor, targets: PictureTargets, kinds: Tensor
) -> dict[str, Tensor]:
    """Return the losses of a set of readers on video tokens [B, P * S, hidden].

    The tower's readers are not asked for what happens between patches: it sees one at a time.
    """
    times = targets.curves.shape[1]
    pooled = heads.pool(tokens, times)
    single = tokens.view(tokens.shape[0], times, -1, tokens.shape[-1])
    width = readers["change"].out_features
    losses = {
        "curves": _weighted(readers["curves"](pooled), targets.curves),
        "inside": F.smooth_l1_loss(readers["inside"](pooled), targets.inside),
        "change": F.smooth_l1_loss(readers["change"](single), targets.change[..., :width]),
        "texture": F.smooth_l1_loss(readers["texture"](single), targets.texture),
    }
    if "into" in readers:
        losses["into"] = F.smooth_l1_loss(readers["into"](pooled), targets.into)
        losses["drift"] = F.smooth_l1_loss(readers["drift"](single), targets.drift)
    guess = readers["kinds"](pooled).float()
    expected = kinds[:, None].expand_as(guess)
    losses["kinds"] = F.binary_cross_entropy_with_logits(guess, expected)
    return losses


def _weighted(guess: Tensor, target: Tensor) -> Tensor:
    error = F.smooth_l1_loss(guess, target, reduction="none")
    return (error * _CURVE_WEIGHTS.repeat(2).to(error.device)).mean()


def voice_loss(heads: Heads, tokens: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the losses of the voice heads on the middle layer's audio tokens [B, A, hidden]."""
    return {
        name: F.smooth_l1_loss(heads.voice[name](tokens), target)
        for name, target in targets.items()
    }
