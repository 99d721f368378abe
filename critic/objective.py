"""The module that an engine trains: the adapted Thinker with the loss of its objective."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ft2.critic.losses import (
    WITH_TIES,
    labels_from_answers,
    mean_over_valid,
    pair_loss,
    regression_loss,
    tie_width,
)
from ft2.qwen import packed

if TYPE_CHECKING:
    from peft import PeftModel


class AnswerLoss(nn.Module):
    """Cross-entropy of the first answer token over the vocabulary.

    The mean over the clips that have an answer to a question, then over the questions.
    """

    def __init__(self, model: "PeftModel", layout: packed.Layout, smoothing: float = 0.0) -> None:
        """Keep the adapted model, the token plan and the probability of the other answer."""
        super().__init__()
        self.smoothing = smoothing
        self.model = model
        self.layout = layout

    def width(self) -> None:
        """Return None: answers have no ties."""

    def forward(self, video: Tensor, audio: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of tower tokens [B, V, D], [B, A, D] and labels [B, Q] in {1, 0, -1}."""
        thinker = self.model.get_base_model()
        logits = packed.answer_logits(thinker, self.layout, video, audio).float()
        chances = logits.log_softmax(-1)
        yes, no = chances[..., self.layout.yes_id], chances[..., self.layout.no_id]
        assert labels.shape == yes.shape, f"labels {list(labels.shape)}, logits {list(yes.shape)}"
        right, other = torch.where(labels > 0, yes, no), torch.where(labels > 0, no, yes)
        loss = -(1 - self.smoothing) * right - self.smoothing * other
        return mean_over_valid(loss, labels >= 0)


class ScoreLoss(nn.Module):
    """Loss of the log-odds of Yes as a score: of pairs, or against opinion scores."""

    def __init__(self, model: "PeftModel", layout: packed.Layout, objective: str) -> None:
        """Keep the adapted model, the token plan and the objective of `ft2.critic.losses`."""
        super().__init__()
        self.model = model
        self.layout = layout
        self.objective = objective
        self.raw_width: nn.Parameter | None = None
        if objective in WITH_TIES:
            self.raw_width = nn.Parameter(torch.zeros(len(layout.answers)))

    def width(self) -> Tensor | None:
        """Return how wide a tie is, [N]; None for an objective without ties."""
        return None if self.raw_width is None else tie_width(self.raw_width, self.objective)

    def forward(self, video: Tensor, audio: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of tower tokens [B, V, D], [B, A, D].

        Args:
            video: Of pairs, all sides A and then all sides B.
            audio: As `video`.
            labels: Comparisons [B/2, N, 2] (see `ft2.critic.batches.Pairs`); or answers [B, N] in
                {1, 0, -1}, from which pairs are made, or with ``regression`` opinion scores, -1
                where there is none.
        """
        logits = packed.answer_logits(self.model.get_base_model(), self.layout, video, audio)
        scores = logits[..., self.layout.yes_id].float() - logits[..., self.layout.no_id].float()
        if self.objective == "regression":
            targets = torch.where(labels < 0, torch.nan, labels.float())
            return regression_loss(scores, targets)
        extra = None
        if labels.ndim == 3:
            labels, extra = labels.unbind(-1)
        else:
            labels = labels_from_answers(labels)
        a, b = scores.chunk(2)
        return pair_loss(self.objective, a, b, labels, width=self.width(), extra=extra)
