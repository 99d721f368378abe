"""A talking block against the published formulas, written anew: loops, slices, complex rotations.

Nothing here uses masks, fused attention or the project's helpers, so what both agree on is the
formula: Wan2.1's block, FantasyTalking's audio term with only the real tokens of each window, and
its identity term.
"""

import math

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

from ft2.wan.block import IdentityProcessor, TalkingBlock

FRAMES, ROWS, COLUMNS = 3, 1, 2
K_LENS = ((2, 5, 3), (5, 1, 4))
Weights = dict[str, Tensor]


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return y if weight is None else y * weight + bias


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    out = torch.einsum("nc,oc->no", x, w[f"{name}.weight"])
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of one sample, [N, C] and [L, C], head by head."""
    width = q.shape[1] // heads
    parts = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = q[:, part] @ k[:, part].T / math.sqrt(width)
        weights = (logits - logits.max(1, keepdim=True).values).exp()
        parts.append(weights / weights.sum(1, keepdim=True) @ v[:, part])
    return torch.cat(parts, 1)


def rotated(x: Tensor, heads: int) -> Tensor:
    """Wan's rotary embedding as complex numbers: frame, row and column share out the pairs."""
    width = x.shape[1] // heads
    pairs = (width // 2 - 2 * (width // 6), width // 6, width // 6)
    angles = []
    for token in range(x.shape[0]):
        place = (token // (ROWS * COLUMNS), token // COLUMNS % ROWS, token % COLUMNS)
        row = [
            position * 10000.0 ** (-2 * index / (2 * count))
            for position, count in zip(place, pairs, strict=True)
            for index in range(count)
        ]
        angles.append(row)
    turn = torch.polar(torch.ones(len(angles), width // 2, dtype=torch.float64),
                       torch.tensor(angles, dtype=torch.float64)).to(torch.complex64)  # fmt: skip
    pairs_x = torch.view_as_complex(x.reshape(x.shape[0], heads, width // 2, 2).contiguous())
    return torch.view_as_real(pairs_x * turn[:, None]).reshape(x.shape)


def cross(w: Weights, x: Tensor, text: Tensor, image: Tensor, audio: list[Tensor],
          scale: float, heads: int,
          known: tuple[Tensor, float] | None = None) -> Tensor:  # fmt: skip
    """Text + image + lambda_1 audio (+ lambda_2 identity), then the one output projection.

    The audio is in windows, or one for all; identity keys are not normalised, as audio's are not.
    """
    q = rms_norm(linear(w, "attn2.to_q", x), w["attn2.norm_q.weight"])
    k = rms_norm(linear(w, "attn2.to_k", text), w["attn2.norm_k.weight"])
    total = attention(q, k, linear(w, "attn2.to_v", text), heads)
    k = rms_norm(linear(w, "attn2.add_k_proj", image), w["attn2.norm_added_k.weight"])
    total = total + attention(q, k, linear(w, "attn2.add_v_proj", image), heads)
    per_window = x.shape[0] // len(audio)
    heard = []
    for number, window in enumerate(audio):
        mine = q[number * per_window : (number + 1) * per_window]
        k = linear(w, "attn2.processor.k_proj", window)
        heard.append(attention(mine, k, linear(w, "attn2.processor.v_proj", window), heads))
    total = total + scale * torch.cat(heard)
    if known is not None:
        k = linear(w, "attn2.identity.k_proj", known[0])
        face = attention(q, k, linear(w, "attn2.identity.v_proj", known[0]), heads)
        total = total + known[1] * face
    return linear(w, "attn2.to_out.0", total)


def published_block(w: Weights, x: Tensor, text: Tensor, image: Tensor, modulation: Tensor,
                    audio: list[Tensor], scale: float, heads: int,
                    known: tuple[Tensor, float] | None = None) -> Tensor:  # fmt: skip
    """One Wan2.1 block with FantasyTalking's audio (and identity) on one sample, [N, C]."""
    e = w["scale_shift_table"][0] + modulation
    y = layer_norm(x) * (1 + e[1]) + e[0]
    q = rotated(rms_norm(linear(w, "attn1.to_q", y), w["attn1.norm_q.weight"]), heads)
    k = rotated(rms_norm(linear(w, "attn1.to_k", y), w["attn1.norm_k.weight"]), heads)
    y = attention(q, k, linear(w, "attn1.to_v", y), heads)
    x = x + linear(w, "attn1.to_out.0", y) * e[2]
    y = layer_norm(x, w["norm2.weight"], w["norm2.bias"])
    x = x + cross(w, y, text, image, audio, scale, heads, known)
    y = linear(w, "ffn.net.0.proj", layer_norm(x) * (1 + e[4]) + e[3])
    y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    return x + linear(w, "ffn.net.2", y) * e[5]


def random_block(
    heads: int, width: int, ffn: int, audio_dim: int, identity_dim: int = 0
) -> TalkingBlock:
    with torch.device("meta"):
        block = TalkingBlock(heads * width, ffn, heads, "rms_norm_across_heads", True, 1e-6,
                             heads * width, audio_dim)  # fmt: skip
        if identity_dim:
            block.attn2.identity = IdentityProcessor(identity_dim, heads * width)
    block.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            else:
                parameter.normal_(mean=float("norm" in name and "weight" in name), std=0.2)
    return block


def close(ours: Tensor, want: Tensor, what: str) -> None:
    error, size = (ours - want).abs().max().item(), want.abs().max().item()
    assert error < 1e-5 * max(size, 1.0), f"{what}: {error:.2e} of {size:.2e}"
    assert error < 1e-4 * size, f"{what}: {error:.2e} of {size:.2e}"


@pytest.mark.parametrize(
    ("width", "ffn", "audio_dim", "whole"),
    [
        (12, 96, 40, False),
        (12, 96, 40, True),
        pytest.param(128, 13824, 2048, False, marks=pytest.mark.slow),
        pytest.param(128, 13824, 2048, True, marks=pytest.mark.slow),
    ],
)
def test_a_block_is_the_published_formulas(width: int, ffn: int, audio_dim: int, whole: bool):
    """Width 12 x 40 heads; slow: Wan 14B's own layer, 5120 wide. Frame level and clip level."""
    check_block(random_block(40, width, ffn, audio_dim), width, audio_dim, whole)


@pytest.mark.parametrize(
    ("width", "audio_dim", "identity_dim"),
    [(12, 40, 28), pytest.param(128, 2048, 1024, marks=pytest.mark.slow)],
)
def test_a_block_with_an_identity_is_the_published_formulas(
    width: int, audio_dim: int, identity_dim: int
):
    """The same with identity tokens of strength 0.5 and 0; slow: 5120 wide, feed-forward 64."""
    block = random_block(40, width, 64, audio_dim, identity_dim)
    check_block(block, width, audio_dim, False, identity_dim)


def check_block(
    block: TalkingBlock, width: int, audio_dim: int, whole: bool, identity_dim: int = 0
) -> None:
    """Compare output and all gradients of a block with the formulas, to 1e-5."""
    heads, dim, tokens = 40, 40 * width, FRAMES * ROWS * COLUMNS
    x, text, image = (torch.randn(2, count, dim) for count in (tokens, 6, 4))
    modulation = torch.randn(2, 6, dim) * 0.3
    groups = 1 if whole else FRAMES
    lengths = torch.tensor([[5], [5]] if whole else K_LENS)
    mask = torch.arange(5) < lengths[..., None]
    audio = torch.randn(2, groups, 5, audio_dim) * mask[..., None]
    scale = torch.tensor([1.0, 0.7])
    given = [x, text, image, modulation, audio]
    names = ["x", "text", "image", "modulation", "audio"]
    strength = torch.tensor([0.5, 0.0])
    if identity_dim:
        given.append(torch.randn(2, 4, identity_dim))
        names.append("identity")
    inputs = [tensor.requires_grad_() for tensor in given]
    rotary = WanRotaryPosEmbed(width, (1, 2, 2), 64)(torch.zeros(1, 1, FRAMES, 2, 4))
    identity = inputs[5] if identity_dim else None
    ours = block(
        x, text, image, modulation, rotary, audio, mask, scale, None, identity, strength
    )  # fmt: skip
    w = dict(block.named_parameters())
    want = torch.stack([
        published_block(
            w, x[i], text[i], image[i], modulation[i],
            [audio[i, g, : int(lengths[i, g])] for g in range(groups)], float(scale[i]), heads,
            None if identity is None else (identity[i], float(strength[i])),
        )
        for i in range(2)
    ])  # fmt: skip
    close(ours, want, "output")
    direction = torch.randn(ours.shape)
    for name, mine, theirs in zip(
        [*names, *w],
        torch.autograd.grad((ours * direction).sum(), [*inputs, *w.values()]),
        torch.autograd.grad((want * direction).sum(), [*inputs, *w.values()]),
        strict=True,
    ):
        close(mine, theirs, name)
