"""Ask a trained critic about clips: P(yes) per dimension."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ft2.critic.adapter import base_hash, load_adapter, read_card
from ft2.critic.tokens import Critic, encode_views
from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS, Scores
from ft2.qwen import packed
from ft2.qwen.spec import QwenSpec
from ft2.qwen.thinker import load_thinker, weights_dir
from ft2.qwen.view import ClipView, read_views
from ft2.runs import Progress, Silent, hash_file

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration


class CriticScorer:
    """Scores clips; one forward answers all three questions. A `Scorer` of `ft2.nsq`."""

    def __init__(
        self,
        adapter_dir: Path | None,
        *,
        model: QwenSpec | None = None,
        calibrated: bool = True,
        batch_size: int = 16,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        """Load the base and the adapter.

        Args:
            adapter_dir: What `ft2 critic train` wrote (``RUN/adapter``); None asks the bare base.
            model: The Thinker; None takes the one in the adapter's card.
            calibrated: Move P(yes) so that 0.5 is the threshold fitted on the dev split.
            batch_size: Clip windows a forward pass.
            device: Where to run.
            progress: Told of every batch.

        Raises:
            UsageError: The adapter is missing, or does not fit the base.
        """
        from ft2.critic.config import QUESTIONS

        self.batch_size, self.progress = batch_size, progress or Silent()
        self.name = "critic without adapter"
        questions: dict[str, str] = QUESTIONS
        thresholds: dict[str, float] = dict.fromkeys(DIMENSIONS, 0.0)
        if adapter_dir is not None:
            card = read_card(Path(adapter_dir))
            model = model or QwenSpec.model_validate(card.model)
            questions = card.questions
            thresholds = card.thresholds if calibrated else thresholds
            _check_base(card.base_sha256, weights_dir(model), Path(adapter_dir))
            self.name = f"critic {hash_file(Path(adapter_dir) / 'adapter_model.safetensors')[:12]}"
        self.spec = model or QwenSpec()
        self.thinker: Qwen2_5OmniThinkerForConditionalGeneration
        self.processor: Qwen2_5OmniProcessor
        self.thinker, self.processor = load_thinker(self.spec, device)
        ordered = [questions[d] for d in DIMENSIONS]
        self.layout = packed.make_layout(self.thinker, self.processor, self.spec, ordered)
        self.thresholds = torch.tensor([thresholds[d] for d in DIMENSIONS])
        if adapter_dir is not None:
            load_adapter(self.thinker, Path(adapter_dir))

    def score(self, paths: Sequence[Path]) -> list[Scores]:
        """Return the scores of video files, in order; the batch size does not change them.

        Raises:
            UsageError: A file cannot be read, has no sound, shows no face, or is too short.
        """
        found: list[Scores] = []
        views: list[ClipView] = []
        owners: list[int] = []
        for number, path in enumerate(paths):
            new = read_views(Path(path), self.spec)
            views += new
            owners += [number] * len(new)
            if len(views) >= self.batch_size or number + 1 == len(paths):
                found += self._scores(views, owners)
                views, owners = [], []
                self.progress.update("score clips", number + 1, len(paths))
        return found

    def score_views(self, views: Sequence[ClipView]) -> list[Scores]:
        """Return the scores of clips that are in memory (see `ft2.qwen.view.make_view`)."""
        return self._scores(list(views), list(range(len(views))))

    @torch.no_grad()
    def log_odds(self, views: Sequence[ClipView]) -> Tensor:
        """Return logit(Yes) - logit(No) less the threshold, float32 [N, 3] on the CPU."""
        critic = Critic(self.thinker, self.processor, self.spec)
        parts = []
        for start in range(0, len(views), self.batch_size):
            batch = views[start : start + self.batch_size]
            video, audio = encode_views(critic, batch)
            logits = packed.answer_logits(self.thinker, self.layout, video, audio).float()
            parts.append((logits[..., self.layout.yes_id] - logits[..., self.layout.no_id]).cpu())
        return torch.cat(parts) - self.thresholds

    def _scores(self, views: list[ClipView], owners: list[int]) -> list[Scores]:
        odds = self.log_odds(views)
        rows = torch.tensor(owners)
        means = [odds[rows == owner].mean(0) for owner in dict.fromkeys(owners)]
        return [Scores(*torch.sigmoid(mean.double()).tolist()) for mean in means]


def _check_base(recorded: str, base: Path, adapter_dir: Path) -> None:
    actual = base_hash(base)
    if recorded and actual != recorded:
        raise UsageError(
            f"{adapter_dir} was trained on another base (sha256 {recorded[:12]}, "
            f"{base} has {actual[:12] or 'none'})",
            "train the critic again on this base: ft2 critic train",
        )
