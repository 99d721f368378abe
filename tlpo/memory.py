"""What one GPU holds while a stage trains, in GiB by part, from sizes alone.

Weights, gradients, Adam's moments and the fp32 copy that ZeRO-1 and 2 make of what is trained are
counted exactly. Activations are what a block of `ft2.wan.block` keeps for its backward pass with
fused attention; the peak is in the backward pass of a block's feed-forward, with what that holds
in passing. The encoders lie on the CPU while a stage trains on a GPU. Left out: the two ends of
the network, DeepSpeed's communication buffers (0.4 GiB), a weight gathered under ZeRO-3, what an
allocator loses, and the encoding of clips that are not in the cache, which comes before.
"""

import torch

from ft2.lora.merge import merging_pays
from ft2.tlpo.config import ExpertConfig, StageConfig
from ft2.tlpo.work import Held, audio_window, num_tokens
from ft2.wan.spec import Architecture

GIB = 2**30


def kept_by_block(config: StageConfig, architecture: Architecture, held: Held, width: int) -> float:
    """Return the bytes that one block keeps of one clip for its backward pass.

    For each video token, d wide: three inputs of layer norms (in fp32), three of RMS norms, the
    query, key and value of self-attention, the query of cross-attention, four outputs of
    attention, and the input of the GELU; what the experts read, if they are trained; rank space.

    Args:
        config: The stage.
        architecture: Sizes of the model.
        held: The experts in the network.
        width: Bytes of a number in the products.
    """
    d, f = architecture.dit.dim, architecture.dit.ffn_dim
    tokens = num_tokens(architecture)
    numbers = 11 * d + f + held.ranks / architecture.dit.num_layers
    if isinstance(config, ExpertConfig):
        numbers += sum(
            size
            for size, readers in _inputs(d, f)
            if any(reader in name for reader in readers for name in held.names)
        )
    lengths = _condition_tokens(architecture)
    conditions = 2.0 * sum(lengths) * d  # keys and values
    for length, ranks in zip(lengths, held.condition_ranks, strict=True):
        conditions += length * ranks / architecture.dit.num_layers
    if any("attn2.to_k" in name for name in held.names):
        conditions += lengths[0] * d  # the key before its norm
    return tokens * (3 * d * 4 + numbers * width) + conditions * width


def attention_output(architecture: Architecture, width: int) -> float:
    """Return the bytes that self-attention gives in a block for one clip, with its log sums."""
    dit = architecture.dit
    return float(num_tokens(architecture) * (dit.dim * width + dit.num_attention_heads * 4))


def _condition_tokens(architecture: Architecture) -> tuple[int, int, int]:
    """Return the text, image and audio tokens of one clip."""
    heard = audio_window(architecture) * architecture.clip.num_latent_frames
    return architecture.text.max_tokens, architecture.image.num_tokens, heard


def in_passing(
    config: StageConfig, architecture: Architecture, held: Held, width: int, rows: int
) -> float:
    """Return the bytes that the backward pass holds beside what blocks keep, where it is most.

    That is the feed-forward: the gradient of the block's output and of the feed-forward's (in
    fp32), that of the second linear's input, and, where no expert keeps that input, the GELU's
    gradient beside it; the experts' rank space and its gradient; the scratch of a merged weight;
    and the embedded conditions, which all blocks read.

    Args:
        config: The stage.
        architecture: Sizes of the model.
        held: The experts in the network.
        width: Bytes of a number in the products.
        rows: Clips that go through the network together.
    """
    d, f = architecture.dit.dim, architecture.dit.ffn_dim
    tokens = num_tokens(architecture)
    adapted = any("ffn.net.2" in name for name in held.names)
    token = d * 4 + 2 * f * width
    if adapted and isinstance(config, ExpertConfig):
        token = 2 * d * 4 + (f + 2 * config.lora.rank) * width
    words, pictures, heard = _condition_tokens(architecture)
    embedded = (words + pictures) * d + heard * architecture.dit.audio_dim
    dtype = torch.float32 if width == 4 else torch.bfloat16
    together = tokens * rows if isinstance(config, ExpertConfig) else tokens
    merged = adapted and merging_pays([(f, d)], together, 2, dtype)
    return rows * (tokens * token + embedded * width) + (d * f * width if merged else 0)


def waiting(
    config: StageConfig, architecture: Architecture, trainable: int, pairs: int, kept: float
) -> float:
    """Return the GiB that wait while a decomposed backward is busy with the other side.

    For the rejected side's turn: its noisy latents and the conditions, from which it is computed
    anew, and its kept outputs of attention. In its turn, when the chosen side's are gone, the sum
    of gradients so far, which autograd adds up before it hands them on. The larger counts.

    Args:
        config: The stage; nothing waits in a plain backward.
        architecture: Sizes of the model.
        trainable: Parameters in the optimiser.
        pairs: Pairs in a micro-batch times their draws.
        kept: One side's kept outputs of attention in all blocks, in GiB.
    """
    if not config.dpo.decomposed:
        return 0.0
    clip, channels = architecture.clip, architecture.latent.channels
    place = clip.num_latent_frames * (clip.height // 8) * (clip.width // 8)
    words, pictures, heard = _condition_tokens(architecture)
    numbers = (2 * channels + 4) * place + words * architecture.text.d_model
    numbers += pictures * architecture.image.hidden_size + heard * architecture.audio.features
    return 4.0 * pairs * numbers / GIB + max(4.0 * trainable / GIB, kept)


def _inputs(d: int, f: int) -> list[tuple[int, tuple[str, ...]]]:
    """Return the width of each input that linears of a block read, and which ones read it."""
    return [
        (d, ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
        (d, ("attn2.to_q",)),
        (d, ("attn2.to_out",)),
        (d, ("ffn.net.0",)),
        (f, ("ffn.net.2",)),
    ]


def memory_gib(
    config: StageConfig, architecture: Architecture, base: int, trainable: int, held: Held,
    zero_stage: int, gpus: int,
) -> dict[str, float]:  # fmt: skip
    """Return what one GPU holds, by part, in GiB.

    Args:
        config: The stage.
        architecture: Sizes of the model.
        base: Parameters of the frozen network.
        trainable: Parameters in the optimiser, kept in fp32.
        held: The experts in the network, kept in fp32.
        zero_stage: 1 shares the optimiser's state, 2 also gradients, 3 also all weights.
        gpus: How many share.
    """
    stored = 2 if config.model.precision == "bf16" else 4
    width = 2 if config.engine.precision == "bf16" else stored
    part = {stage: 1 / gpus if zero_stage >= stage else 1.0 for stage in (1, 2, 3)}
    draws = config.engine.micro_batch_size * config.sigma.draws
    rows = draws if config.dpo.decomposed else 2 * draws
    block = rows * kept_by_block(config, architecture, held, width) / GIB
    entrance = rows * num_tokens(architecture) * architecture.dit.dim * width / GIB
    layers, checkpointing = architecture.dit.num_layers, config.gradient_checkpointing
    kept = 0.0
    if checkpointing == "keep_attention":
        kept = rows * attention_output(architecture, width) / GIB
    cast = (held.total if width < 4 else 0) + (base if width < stored else 0)
    return {
        "base": base * stored / GIB * part[3],
        "experts": held.total * 4 / GIB * part[3],
        "gradients": trainable * 4 / GIB * part[2],
        "adam": trainable * 8 / GIB * part[1],
        "master": trainable * 4 / GIB * part[1] if zero_stage in (1, 2) else 0.0,
        "activations": layers * (entrance + kept if checkpointing else block),
        "workspace": block - kept if checkpointing else 0.0,
        "cast": cast * width / GIB / (layers if checkpointing else 1),
        "passing": in_passing(config, architecture, held, width, rows) / GIB,
        "waiting": waiting(config, architecture, trainable, draws, layers * kept),
    }
