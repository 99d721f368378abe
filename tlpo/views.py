"""Pairs of a view: which are trained on, which are held out, and how much each counts."""

from dataclasses import dataclass

from ft2.pairs import DIMENSIONS, Preference, Store, read_pairs
from ft2.tlpo.config import StageConfig, View
from ft2.tlpo.data import pair_weights, require_pairs, split_held_out


@dataclass(frozen=True)
class Weighted:
    """Pairs with their weights in the loss; None is 1 each."""

    pairs: list[Preference]
    weights: list[float] | None


def read_view(config: StageConfig, view: View) -> tuple[Weighted, list[Preference]]:
    """Return (training, held-out) pairs of a view, refusing too few before anything loads.

    Raises:
        UsageError: Fewer training pairs than one micro-batch.
    """
    stores: list[Store] = [view] if view != "mixed" else list(DIMENSIONS)
    train: list[Preference] = []
    held_out: list[Preference] = []
    weights: list[float] = []
    dpo, loop = config.dpo, config.loop
    for store in stores:
        weight = config.view_weights.get(store, 1.0) if store != "fusion" else 1.0
        if not weight:
            continue
        own, unseen = split_held_out(read_pairs(config.dataset, store), loop.held_out, loop.seed)
        gaps = pair_weights([pair.margin for pair in own], dpo.pair_weight, dpo.weight_power)
        weights += [weight * gap for gap in gaps or [1.0] * len(own)]
        train += own
        held_out += unseen[: -(-loop.eval_pairs // len(stores))]
    require_pairs(train, view, config.dataset, least=config.engine.micro_batch_size)
    even = all(weight == 1 for weight in weights)
    return Weighted(train, None if even else weights), held_out[: loop.eval_pairs]


def same_format(part: Weighted) -> tuple[Weighted, int]:
    """Return the pairs whose clips have one size and length, and how many have not."""
    kept = []
    for number, pair in enumerate(part.pairs):
        sizes = {
            (clip.width, clip.height, clip.num_frames) for clip in (pair.chosen, pair.rejected)
        }
        if len(sizes) == 1:
            kept.append(number)
    lost = len(part.pairs) - len(kept)
    if not lost:
        return part, 0
    weights = None if part.weights is None else [part.weights[i] for i in kept]
    return Weighted([part.pairs[i] for i in kept], weights), lost
