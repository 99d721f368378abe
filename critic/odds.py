"""Log-odds of Yes of rated clips, by the model that is being trained or measured."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ft2.critic.tokens import Tokens
from ft2.qwen import packed

if TYPE_CHECKING:
    from peft import PeftModel


@torch.no_grad()
def log_odds(
    model: "PeftModel",
    layout: packed.Layout,
    tokens: Tokens,
    *,
    sounds: Tensor | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Return logit(Yes) - logit(No), float32 [N, 3], the mean over a clip's windows [clips, 3].

    Args:
        model: The adapted model.
        layout: Token plan.
        tokens: Tower tokens.
        sounds: Which window's sound each window gets, int64 [N]; None is its own.
        batch_size: Windows a forward pass.
    """
    thinker = model.get_base_model()
    every = torch.arange(len(tokens.rows))
    parts = []
    for rows in every.split(batch_size):
        video, audio = tokens.take(rows, rows if sounds is None else sounds[rows])
        heard = audio if len(layout.audio) else None
        logits = packed.answer_logits(thinker, layout, video, heard).float()
        parts.append(logits[..., layout.yes_id] - logits[..., layout.no_id])
    odds = torch.cat(parts)
    clips = int(tokens.rows.clip.max()) + 1
    total = torch.zeros(clips, odds.shape[1], device=odds.device)
    index = tokens.rows.clip.to(odds.device)
    count = torch.bincount(index, minlength=clips).clamp(min=1)
    return total.index_add(0, index, odds) / count[:, None]
