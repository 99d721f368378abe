"""How often the critic agrees with raters, always beside what a trivial judge reaches."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ft2.critic.adapter import load_adapter
from ft2.critic.calibration import apply_map
from ft2.critic.checkpoint import CriticCard, match_base, read_card, read_lora
from ft2.critic.data import Split, other_voice, read_ratings
from ft2.critic.facts import critic_facts
from ft2.critic.names import ONE_VOICE, SWAPPED
from ft2.critic.odds import log_odds
from ft2.critic.score import card_model
from ft2.critic.sync_row import sync_row
from ft2.critic.tokens import Critic, Rows, encode_ratings, silenced
from ft2.errors import UsageError
from ft2.metrics import accuracy, calibration, classify
from ft2.qwen.spec import QwenSpec
from ft2.qwen.streams import layout_of
from ft2.qwen.thinker import load_thinker, weights_dir
from ft2.runs import Progress, Silent

if TYPE_CHECKING:
    from torch import Tensor

ROWS = {
    "critic": "trained, calibrated, or with the thresholds of the dev split",
    "critic_raw": "trained, Yes where P(yes) >= 0.5",
    "untrained": "the base without the adapter",
    "majority": "always the commoner answer",
    "silenced": "trained, the sound made silent; labels unchanged",
    "silenced_detected": "trained, the sound made silent; lip answer No is right",
    "audio_swapped": "trained, another clip's sound; labels unchanged",
    "audio_swapped_detected": "trained, another clip's sound; lip answer No is right",
    "sync_measure": "no critic: the tracked mouth against the sound (`ft2.metrics.lips`)",
}
"""Rows of every table, in order, and what each means."""


@dataclass(frozen=True)
class Measured:
    """What judges say about rated clips."""

    odds: "dict[str, Tensor]"
    """Per judge log-odds of the clips [clips, N]: ``critic_raw``, ``untrained``,
    ``silenced``, and, where there are two voices, ``audio_swapped``."""
    rows: Rows
    """The clips and their answers."""
    card: CriticCard
    """Of the critic."""


def measure(
    ratings: Path,
    adapter_dir: Path,
    *,
    split: Split = "test",
    source: str | None = None,
    model: QwenSpec | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Measured:
    """Return the log-odds of a critic and of its poorer variants; see `evaluate`."""
    card = read_card(adapter_dir)
    dimensions = tuple(card.questions)
    rated = [r for r in read_ratings(ratings, split, dimensions) if source in (None, r.source)]
    if not rated:
        raise UsageError(f"{ratings} has no {split} ratings of source {source!r}")
    spec = card_model(card, model)
    read_lora(adapter_dir)
    match_base(card, weights_dir(spec), adapter_dir)
    thinker, processor = load_thinker(spec, device)
    layout = layout_of(thinker, processor, spec, card.questions)
    critic = Critic(thinker, processor, spec)
    tokens = encode_ratings(critic, rated, progress=progress or Silent())
    adapted = load_adapter(thinker, adapter_dir)
    with adapted.disable_adapter():
        untrained = log_odds(adapted, layout, tokens)
    odds = {
        "critic_raw": log_odds(adapted, layout, tokens),
        "untrained": untrained,
        "silenced": log_odds(adapted, layout, silenced(critic, tokens)),
    }
    if len(set(tokens.rows.utterances.tolist())) > 1:
        voices = other_voice(tokens.rows.utterances, torch.Generator().manual_seed(0))
        odds["audio_swapped"] = log_odds(adapted, layout, tokens, sounds=voices)
    return Measured(odds, tokens.rows, card)


def evaluate(
    ratings: Path,
    adapter_dir: Path,
    *,
    split: Split = "test",
    source: str | None = None,
    model: QwenSpec | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    sync: bool = False,
) -> dict[str, Any]:
    """Return accuracy and AUC per dimension for the critic and for the judges it must beat.

    Intervals are percentile bootstraps over utterances, so clips with one voice count as one draw.

    Args:
        ratings: A ``ratings.jsonl``.
        adapter_dir: What `ft2 critic train` wrote.
        split: Which ratings to use.
        source: Only ratings of this source (``puppet``, ``judges``, ``human``); None takes all.
        model: The Thinker; None takes the one in the adapter's card.
        device: Where to run.
        progress: Told how far it is.
        sync: Also let the lip-sync measure without SyncNet judge lips, with a threshold of the dev
            split (0.2 s a clip: faces are tracked).

    Returns:
        ``{"split", "clips", "rows": {row: {dimension: {"n", "accuracy", "auc", ...}}}, ...}``.

    Raises:
        UsageError: Ratings or adapter are missing or unfit.
    """
    found = measure(
        ratings, adapter_dir, split=split, source=source, model=model, device=device,
        progress=progress,
    )  # fmt: skip
    table = _table(found.odds, found.card, found.rows, split)
    dimensions = tuple(found.card.questions)
    if sync and "lip" in dimensions:
        rated = [r for r in read_ratings(ratings, None, dimensions) if source in (None, r.source)]
        own, dev = ([r for r in rated if r.split == name] for name in (split, "dev"))
        lips = sync_row(own, dev, dimensions.index("lip"), progress)
        table["rows"]["sync_measure"] = {"lip": lips}
        table["meaning"]["sync_measure"] = ROWS["sync_measure"]
    return {"ratings": ratings.name, "critic": critic_facts(adapter_dir), **table}


def _table(odds: "dict[str, Tensor]", card: CriticCard, known: Rows, split: str) -> dict[str, Any]:
    thresholds, maps = card.thresholds, card.maps
    changed = [name for name in ("silenced", "audio_swapped") if name in odds]
    skipped = {"sync_measure"} if len(changed) > 1 else {"sync_measure", *SWAPPED}
    rows: dict[str, dict[str, Any]] = {row: {} for row in ROWS if row not in skipped}
    first = known.first_windows()
    labels, groups = known.labels[first].numpy(), known.utterances[first]
    for column, dimension in enumerate(thresholds):
        rated = labels[:, column] >= 0
        truth, voices = labels[rated, column] > 0, groups[rated]
        if not len(truth):
            continue
        scores = {name: x[:, column].numpy(force=True)[rated] for name, x in odds.items()}
        cut = thresholds[dimension]
        plain = {"scale": 1.0, "cut": cut}
        chances = apply_map(maps.get(dimension, plain), scores["critic_raw"].astype(np.float64))
        rows["critic"][dimension] = _row(chances, truth, voices, 0.5)
        rows["critic"][dimension]["calibration"] = calibration(chances, truth, voices)
        rows["critic"][dimension]["roc"] = roc(chances, truth)
        for name in ("critic_raw", "untrained"):
            rows[name][dimension] = _row(scores[name], truth, voices, 0.0)
        for name in changed:
            rows[name][dimension] = _row(scores[name], truth, voices, cut)
        best = rows["critic_raw"][dimension]["majority"]
        rows["majority"][dimension] = {"n": len(truth), "accuracy": best, "auc": None}
        if dimension == "lip":
            wrong = np.zeros(len(truth), dtype=bool)
            for name in changed:
                found = accuracy(scores[name] >= cut, wrong, voices).to_dict()
                row = {"n": len(truth), "accuracy": found, "auc": None}
                rows[f"{name}_detected"]["lip"] = row
    return {
        "split": split,
        "clips": len(first),
        "utterances": len(set(groups.tolist())),
        "identities": len(set(known.identity_ids[first].tolist())),
        "thresholds": thresholds,
        "meaning": {row: ROWS[row] for row in rows},
        "rows": rows,
    }


def roc(scores: "np.ndarray[Any, Any]", truth: "np.ndarray[Any, Any]") -> list[list[float]]:
    """Return the corners (share of No taken for Yes, share of Yes found) of the ROC curve."""
    from sklearn.metrics import roc_curve

    if truth.all() or not truth.any():
        return []
    false, right, _ = roc_curve(truth, scores)
    return np.stack([false, right], axis=1).round(6).tolist()


def _row(
    scores: "np.ndarray[Any, Any]",
    truth: "np.ndarray[Any, Any]",
    groups: "np.ndarray[Any, Any]",
    cut: float,
) -> dict[str, Any]:
    return classify(scores, truth, groups, threshold=cut)


def table_lines(result: dict[str, Any]) -> list[str]:
    """Return the table as text: a row a judge, accuracy with its interval per dimension."""
    lines = [
        f"{result['split']}: {result['clips']} clips, {result['utterances']} utterances, "
        f"{result['identities']} faces; accuracy [95 % over utterances] AUC",
        f"{'':24}" + "".join(f"{d:>30}" for d in result["thresholds"]),
    ]
    for name, cells in result["rows"].items():
        texts = [_cell(cells.get(dimension)) for dimension in result["thresholds"]]
        lines.append(f"{name:24}" + "".join(f"{text:>30}" for text in texts))
    counts = [str(result["rows"]["critic"].get(d, {}).get("n", 0)) for d in result["thresholds"]]
    lines.append(f"{'n':24}" + "".join(f"{text:>30}" for text in counts))
    if SWAPPED[0] not in result["rows"]:
        lines.append(f"{SWAPPED[0]} is left out: {ONE_VOICE}")
    for reason, count in _left_out(result).items():
        lines.append(f"sync_measure leaves out {count}: {reason}")
    return lines


def _left_out(result: dict[str, Any]) -> dict[str, int]:
    """Return how many clips the lip-sync measure could not judge, by why."""
    row = result["rows"].get("sync_measure", {})
    found: dict[str, int] = row.get("lip", {}).get("left_out", {})
    return found


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None or cell["accuracy"] is None:
        return "-"
    value = cell["accuracy"]
    text = f"{value['value']:.3f} [{value['low']:.2f}, {value['high']:.2f}]"
    if cell.get("auc") and cell["auc"]["value"] is not None:
        text += f" {cell['auc']['value']:.3f}"
    return text
