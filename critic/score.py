"""Ask a trained critic about clips: P(yes) per dimension."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ft2.config import flatten
from ft2.critic.adapter import load_adapter
from ft2.critic.cache import fingerprint
from ft2.critic.calibration import Map, apply_map
from ft2.critic.checkpoint import (
    FILES,
    SCHEMA,
    CriticCard,
    base_hash,
    match_base,
    read_card,
    read_lora,
)
from ft2.critic.config import LoraSpec
from ft2.critic.tokens import Critic, encode_views
from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS, Scores
from ft2.qwen import packed
from ft2.qwen.spec import QwenSpec
from ft2.qwen.streams import layout_of
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
            calibrated: Give the calibrated P(yes) of the adapter's card; see `chances`.
            batch_size: Clip windows a forward pass.
            device: Where to run.
            progress: Told of every batch.

        Raises:
            UsageError: The adapter is missing, or does not fit the base.
        """
        from ft2.critic.config import QUESTIONS

        self.batch_size, self.progress = batch_size, progress or Silent()
        self.name = "critic without adapter"
        self.questions: dict[str, str] = QUESTIONS
        self.card: CriticCard | None = None
        self.lora: LoraSpec | None = None
        cuts: dict[str, float] = {}
        self.maps: dict[str, Map] = {}
        if adapter_dir is not None:
            adapter_dir = Path(adapter_dir)
            card = self.card = read_card(adapter_dir)
            self.lora = read_lora(adapter_dir)
            model = card_model(card, model)
            self.questions = card.questions
            if calibrated:
                cuts, self.maps = card.thresholds, card.maps
            self.base_sha256 = match_base(card, weights_dir(model), adapter_dir)
            self.name = f"critic {hash_file(adapter_dir / FILES[1])[:12]}"
        self.spec = model or QwenSpec()
        if adapter_dir is None:
            self.base_sha256 = base_hash(weights_dir(self.spec))
        self.thinker: Qwen2_5OmniThinkerForConditionalGeneration
        self.processor: Qwen2_5OmniProcessor
        self.thinker, self.processor = load_thinker(self.spec, device)
        self.dimensions = tuple(self.questions)
        self.layout = layout_of(self.thinker, self.processor, self.spec, self.questions)
        self.thresholds = torch.tensor([cuts.get(d, 0.0) for d in self.dimensions])
        if adapter_dir is not None:
            load_adapter(self.thinker, adapter_dir)

    @property
    def fingerprint(self) -> str:
        """Hash of all that a clip's log-odds depend on besides the clip."""
        return fingerprint(
            {
                "adapter": self.name,
                "lora": self.lora and self.lora.model_dump(mode="json"),
                "base": self.base_sha256,
                "model": self.spec.model_dump(mode="json", exclude={"weights"}),
                "questions": self.questions,
                "schema": SCHEMA,
            }
        )

    def score(self, paths: Sequence[Path]) -> list[Scores]:
        """Return the scores of video files, in order; the batch size does not change them.

        Raises:
            UsageError: A file cannot be read, has no sound, shows no face, or is too short; the
                critic has other dimensions than motion, lip and quality.
        """
        self._check_dimensions()
        return self._scores(torch.stack([self._found(odds) for odds in self.clip_odds(paths)]))

    @staticmethod
    def _found(odds: Tensor | UsageError) -> Tensor:
        if isinstance(odds, UsageError):
            raise odds
        return odds

    def clip_odds(self, paths: Sequence[Path]) -> Iterator[Tensor | UsageError]:
        """Yield for each file its log-odds before any threshold, float32 [N], or why it has none.

        Of a clip that is longer than the model's format, the mean over its windows.
        """
        views: list[ClipView] = []
        waiting: list[int | UsageError] = []
        for number, path in enumerate(paths):
            try:
                new = read_views(Path(path), self.spec)
                views += new
                waiting.append(len(new))
            except UsageError as error:
                waiting.append(error)
            if len(views) >= self.batch_size or number + 1 == len(paths):
                yield from self._flush(views, waiting)
                views, waiting = [], []
                self.progress.update("score clips", number + 1, len(paths))

    def _flush(
        self, views: list[ClipView], waiting: list[int | UsageError]
    ) -> Iterator[Tensor | UsageError]:
        odds = self.log_odds(views)
        first = 0
        for item in waiting:
            if isinstance(item, UsageError):
                yield item
            else:
                yield odds[first : first + item].mean(0)
                first += item

    def score_views(self, views: Sequence[ClipView]) -> list[Scores]:
        """Return the scores of clips that are in memory (see `ft2.qwen.view.make_view`)."""
        self._check_dimensions()
        return self._scores(self.log_odds(views))

    @torch.no_grad()
    def log_odds(self, views: Sequence[ClipView]) -> Tensor:
        """Return logit(Yes) - logit(No), float32 [views, N] on the CPU, before any threshold."""
        critic = Critic(self.thinker, self.processor, self.spec)
        parts = [torch.zeros(0, len(self.dimensions))]
        for start in range(0, len(views), self.batch_size):
            batch = views[start : start + self.batch_size]
            video, audio = encode_views(critic, batch)
            logits = packed.answer_logits(self.thinker, self.layout, video, audio).float()
            parts.append((logits[..., self.layout.yes_id] - logits[..., self.layout.no_id]).cpu())
        return torch.cat(parts)

    def chances(self, odds: Tensor) -> Tensor:
        """Return P(yes) float64 [..., N] of log-odds, calibrated where the critic's card says how.

        Without calibration, 0.5 is the threshold fitted on the dev split.
        """
        p = torch.sigmoid((odds - self.thresholds).double())
        for name, found in self.maps.items():
            column = self.dimensions.index(name)
            values = apply_map(found, odds[..., column].double().numpy())
            p[..., column] = torch.from_numpy(np.asarray(values))
        return p

    def _scores(self, odds: Tensor) -> list[Scores]:
        return [Scores(*row) for row in self.chances(odds).tolist()]

    def _check_dimensions(self) -> None:
        if self.dimensions != DIMENSIONS:
            raise UsageError(
                f"this critic answers {', '.join(self.dimensions)}, "
                f"preference data needs {', '.join(DIMENSIONS)}",
                "train one on these three questions",
            )


def card_model(card: CriticCard, given: QwenSpec | None) -> QwenSpec:
    """Return the Thinker of a card; one that is given may differ in where its weights are.

    Raises:
        UsageError: It shows clips otherwise (format, view, streams) or has other sizes.
    """
    own = card.model
    if given is None:
        return own
    one, other = (
        flatten(spec.model_dump(mode="json", exclude={"weights"})) for spec in (own, given)
    )
    changed = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    if changed:
        key = changed[0]
        raise UsageError(
            f"the critic was trained with model.{key} = {one.get(key)!r}, not {other.get(key)!r}",
            "what a critic sees belongs to its checkpoint: leave model.* as in critic.json",
        )
    return given


def check_base(adapter_dir: Path) -> None:
    """Refuse a critic whose base on this machine is not the one it was trained on; loads nothing.

    Where the base is not on this machine there is nothing to compare.

    Raises:
        UsageError: There is no critic, it is damaged, or its base is another.
    """
    card = read_card(adapter_dir)
    read_lora(adapter_dir)
    try:
        base = weights_dir(card_model(card, None))
    except UsageError:
        return
    match_base(card, base, adapter_dir)
