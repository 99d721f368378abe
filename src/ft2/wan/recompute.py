"""What is computed again in the backward pass instead of being kept: all, or not attention.

Self-attention is the dearest part of a long clip to compute again (42 % of a forward pass at 21,504
tokens) and the cheapest to keep: its output is as wide as a block's input. The queries, keys and
values that its backward pass needs are linears, and computed again, as is attention over the few
tokens of text, picture and sound.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Recompute = Callable[..., Any]
"""Calls a function with arguments so that little of it is kept for the backward pass."""

_KERNELS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)

ATTENTION = frozenset(
    getattr(torch.ops.aten, name).default for name in _KERNELS if hasattr(torch.ops.aten, name)
)
"""Operators that `torch.nn.functional.scaled_dot_product_attention` becomes, on CPUs and GPUs."""


def recompute(function: Callable[..., Any], *args: object) -> Any:
    """Call ``function``; the backward pass calls it again. There must be no dropout in it."""
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def recompute_but_attention(function: Callable[..., Any], *args: object) -> Any:
    """Call ``function``; the backward pass calls it again, with self-attention's kept outputs."""
    return checkpoint(
        function, *args, use_reentrant=False, preserve_rng_state=False,
        context_fn=partial(create_selective_checkpoint_contexts, _keep_self_attention),
    )  # fmt: skip


def recompute_as(checkpointing: object) -> Recompute:
    """Return what a config's ``gradient_checkpointing`` asks for where it is not False."""
    return recompute_but_attention if checkpointing == "keep_attention" else recompute


def _keep_self_attention(_: object, operator: object, *args: Any, **__: object) -> CheckpointPolicy:
    """Keep what attention gives where there are as many keys as queries, [B, H, L, d] both."""
    if operator in ATTENTION and args[0].shape[-2] == args[1].shape[-2]:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
