"""What a critic can learn from: answers about clips, choices between two, opinion scores.

One interface: scores [B, N] of N dimensions in float32, labels that may be missing, the mean over
the valid labels of a dimension, then over the dimensions that have any. d = s_a - s_b.

| objective | form |
|---|---|
| ``bradley_terry`` | -log sigma(d) for a win of A; ties give nothing |
| ``margin`` | -log sigma(d - mu) with a margin mu >= 0 a pair |
| ``soft`` | -p log sigma(d) - (1 - p) log sigma(-d) with the share p of raters for A |
| ``rao_kupper`` | P(A) = sigma(d - log k), P(B) = sigma(-d - log k), P(tie) = (k^2 - 1) P(A) P(B) |
| ``davidson`` | P(A) : P(B) : P(tie) = e^(d/2) : e^(-d/2) : nu |
| ``regression`` | (s - y)^2 |

Sources: Bradley and Terry 1952; Rao and Kupper 1967; Davidson 1970.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

WITH_TIES: Final = ("rao_kupper", "davidson")
"""Objectives that learn how wide a tie is."""

MISSING: Final = -9
"""Label of a pair that nobody compared on a dimension."""


def tie_width(raw: Tensor, objective: str) -> Tensor:
    """Return k = 1 + softplus(raw) > 1 of Rao and Kupper, or nu = softplus(raw) > 0 of Davidson."""
    return F.softplus(raw) + (1.0 if objective == "rao_kupper" else 0.0)


def outcome_log_probabilities(d: Tensor, objective: str, width: Tensor) -> Tensor:
    """Return log P of (A, tie, B), [..., 3], of score differences [..., N].

    Args:
        d: s_a - s_b.
        objective: ``rao_kupper`` or ``davidson``.
        width: k or nu, broadcast against `d`.
    """
    d, width = d.float(), width.float().expand_as(d)
    if objective == "rao_kupper":
        a, b = F.logsigmoid(d - width.log()), F.logsigmoid(-d - width.log())
        return torch.stack([a, (width.square() - 1).log() + a + b, b], dim=-1)
    return torch.stack([d / 2, width.log(), -d / 2], dim=-1).log_softmax(-1)


def pair_loss(
    objective: str,
    scores_a: Tensor,
    scores_b: Tensor,
    labels: Tensor,
    *,
    width: Tensor | None = None,
    extra: Tensor | None = None,
) -> Tensor:
    """Return the loss of pairs.

    Args:
        objective: One of `ft2.critic.names.PAIR_OBJECTIVES`.
        scores_a: [B, N].
        scores_b: [B, N]; never broadcast.
        labels: [B, N]: 1 for A, -1 for B, 0 for a tie, `MISSING`.
        width: [N], for the objectives with ties; see `tie_width`.
        extra: [B, N]: the margin, or the share of raters for A; nan where there is none (then the
            margin is 0 and the share that of the label).
    """
    assert scores_a.ndim == 2, f"scores {list(scores_a.shape)} are not [B, N]"
    assert scores_a.shape == scores_b.shape == labels.shape, (
        f"scores {list(scores_a.shape)}, {list(scores_b.shape)} and labels {list(labels.shape)}"
    )
    assert extra is None or extra.shape == labels.shape, f"extra {list(extra.shape)}"
    d = scores_a.float() - scores_b.float()
    valid = labels != MISSING
    if objective in WITH_TIES:
        assert width is not None
        assert width.shape == d.shape[1:], f"widths {list(width.shape)} for scores {list(d.shape)}"
        chances = outcome_log_probabilities(d, objective, width)
        place = torch.where(valid, 1 - labels, 0).long()  # A, tie, B
        return mean_over_valid(-chances.gather(-1, place[..., None])[..., 0], valid)
    known = torch.zeros_like(valid) if extra is None else torch.isfinite(extra)
    given = torch.zeros_like(d) if extra is None else torch.nan_to_num(extra.float())
    if objective == "soft":
        share = torch.where(known, given, (labels + 1) / 2)
        loss = -share * F.logsigmoid(d) - (1 - share) * F.logsigmoid(-d)
        return mean_over_valid(loss, valid)
    side = labels.float()
    loss = -F.logsigmoid(side * d - (given.abs() if objective == "margin" else 0.0))
    return mean_over_valid(loss, valid & (labels != 0))


def regression_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of scores [B, N]; a target of nan is missing."""
    assert scores.shape == targets.shape, f"{list(scores.shape)} and {list(targets.shape)}"
    valid = torch.isfinite(targets)
    gap = scores.float() - torch.where(valid, targets.float(), scores.detach().float())
    return mean_over_valid(gap.square(), valid)


def mean_over_valid(loss: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over valid entries of each column of [B, N], then over columns that have any.

    Written as one mean over all valid entries, each weighted by how rare its column's are, so that
    without missing ones it is the plain mean to the bit. Without any valid entry it is 0 and
    carries no gradient.
    """
    assert loss.ndim == 2, f"losses {list(loss.shape)} are not [B, N]"
    assert loss.shape == valid.shape, f"losses {list(loss.shape)} and {list(valid.shape)}"
    count = valid.sum(0)
    total, columns = count.sum(), (count > 0).sum()
    weight = total / (count * columns).clamp(min=1)
    return (torch.where(valid, loss, 0.0) * weight).sum() / total.clamp(min=1)


def labels_from_answers(labels: Tensor) -> Tensor:
    """Return pair labels [P, N] of clip answers [2P, N]: clip i against clip P + i.

    Yes beats No and equal answers tie, FantasyTalking2's pair rule; unrated clips (-1) give none.
    """
    a, b = labels.chunk(2)
    return torch.where((a >= 0) & (b >= 0), (a - b).sign(), MISSING)
