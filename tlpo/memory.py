"""What one GPU holds while a stage trains, in GiB by part, from sizes alone.

Weights, gradients and Adam's moments are counted exactly. Activations are what a block of
`ft2.wan.block` keeps for its backward pass with fused attention, at the peak between the passes;
the two ends of the network, masks and what calls use in passing are left out.
"""

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
    tokens, clip = num_tokens(architecture), architecture.clip
    numbers = 11 * d + f + held.ranks / architecture.dit.num_layers
    if isinstance(config, ExpertConfig):
        numbers += sum(
            size
            for size, readers in _inputs(d, f)
            if any(reader in name for reader in readers for name in held.names)
        )
    words, pictures = architecture.text.max_tokens, architecture.image.num_tokens
    heard = audio_window(architecture) * clip.num_latent_frames
    conditions = 2 * (words + pictures + heard) * d  # keys and values
    if any("attn2.to_k" in name for name in held.names):
        conditions += words * d  # the key before its norm
    return tokens * (3 * d * 4 + numbers * width) + conditions * width


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
        trainable: Parameters in the optimiser.
        held: The experts in the network, kept in fp32.
        zero_stage: 1 shares the optimiser's state, 2 also gradients, 3 also all weights.
        gpus: How many share.
    """
    stored = 2 if config.model.precision == "bf16" else 4
    width = 2 if config.engine.precision == "bf16" else stored
    part = {stage: 1 / gpus if zero_stage >= stage else 1.0 for stage in (1, 2, 3)}
    sides = 1 if config.dpo.decomposed else 2
    rows = sides * config.engine.micro_batch_size * config.sigma.draws
    block = rows * kept_by_block(config, architecture, held, width) / GIB
    entrance = rows * num_tokens(architecture) * architecture.dit.dim * width / GIB
    checkpointing = config.gradient_checkpointing
    return {
        "base": base * stored / GIB * part[3],
        "experts": held.total * 4 / GIB * part[3],
        "gradients": trainable * 4 / GIB * part[2],
        "adam": trainable * 8 / GIB * part[1],
        "activations": architecture.dit.num_layers * (entrance if checkpointing else block),
        "workspace": block if checkpointing else 0.0,
    }
