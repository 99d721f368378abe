"""Reference errors computed once: two numbers for each pair and stored draw, kept in the cache.

A reference never changes, so its errors on fixed draws need not be computed again in later epochs,
after a resume, or by another run with the same reference. The file belongs to one reference: base
weights, experts and gate that act in it, draws, masks and pairs; for another one it is refused.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ft2.engine import Engine
from ft2.errors import UsageError
from ft2.pairs import Preference
from ft2.runs import Progress, load_tensors, save_tensors
from ft2.tlpo.config import StageConfig
from ft2.tlpo.data import PairData
from ft2.tlpo.draws import stored_draws
from ft2.tlpo.step import PreferenceStep

REFERENCE_VERSION = 1


def pair_key(pair: Preference) -> str:
    """Return what the draws of a pair depend on: its two clips, in order of preference."""
    return f"{pair.chosen.clip_id}/{pair.rejected.clip_id}"


def reference_identity(
    config: StageConfig, base: str, reference: Mapping[str, object], pairs: Sequence[Preference]
) -> dict[str, object]:
    """Return everything that the reference's errors depend on, as plain values.

    Args:
        config: The stage.
        base: `model_hash` of the base.
        reference: What acts in the reference: nothing for the base alone.
        pairs: The training pairs, in order.
    """
    keys = "\n".join(pair_key(pair) for pair in pairs)
    mask = config.mask.model_dump(mode="json", exclude={"min_sum"})
    return {
        "version": REFERENCE_VERSION,
        "base": base,
        "reference": dict(reference),
        "sigma": config.sigma.model_dump(mode="json", exclude={"draws", "antithetic"}),
        "mask": mask if config.mask.kind == "lip" else None,
        "seed": config.loop.seed,
        "precision": [config.engine.precision, config.model.precision],
        "pairs": hashlib.sha256(keys.encode()).hexdigest(),
    }


class StoredReference:
    """The reference's errors on every stored draw of every pair."""

    def __init__(self, errors: Tensor) -> None:
        """Wrap errors [pairs, stored draws, 2], last dimension (chosen, rejected)."""
        self._errors = errors

    def of(
        self, index: Sequence[int], numbers: Sequence[Sequence[int]], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return the errors on (chosen, rejected) of some pairs and of their draws, each [B, N]."""
        rows = torch.tensor(list(index))[:, None]
        found = self._errors[rows, torch.tensor([list(n) for n in numbers])].to(device)
        return found[..., 0], found[..., 1]


def stored_reference(
    step: PreferenceStep,
    data: PairData,
    config: StageConfig,
    engine: Engine,
    identity: Mapping[str, object],
    folder: Path,
    device: torch.device,
    progress: Progress,
    autocast: contextlib.AbstractContextManager[object],
) -> StoredReference:
    """Return the reference's errors, from the cache or computed now and written there.

    Raises:
        UsageError: The file in the cache belongs to another reference.
    """
    text = json.dumps(identity, sort_keys=True)
    path = folder / f"reference-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    if path.is_file():
        return StoredReference(read_reference(path, identity))
    with autocast:
        errors = _compute(step, data, config, engine, device, progress)
    if engine.rank == 0:
        save_tensors(path, {"errors": errors}, {"identity": text})
    return StoredReference(errors)


def read_reference(path: Path, identity: Mapping[str, object]) -> Tensor:
    """Return the stored errors [pairs, draws, 2] of exactly this reference.

    Raises:
        UsageError: The file belongs to another reference, or holds values that are not finite.
    """
    tensors, info = load_tensors(path)
    if json.loads(info.get("identity", "null")) != json.loads(json.dumps(identity)):
        raise UsageError(
            f"the reference errors in '{path}' belong to another reference",
            "remove the file; it is computed again",
        )
    if not bool(torch.isfinite(tensors["errors"]).all()):
        raise UsageError(f"'{path}' holds errors that are not finite", "remove the file")
    return tensors["errors"]


def _compute(
    step: PreferenceStep,
    data: PairData,
    config: StageConfig,
    engine: Engine,
    device: torch.device,
    progress: Progress,
) -> Tensor:
    """Compute all errors, the batches shared out over the ranks; every rank does as many."""
    size, draws = config.engine.micro_batch_size, config.sigma.stored_draws
    starts = list(range(0, len(data), size))
    errors = torch.zeros(len(data), draws, 2)
    turns = -(-len(starts) // engine.world_size)
    for turn in range(turns):
        number = turn * engine.world_size + engine.rank
        start = starts[number] if number < len(starts) else starts[0]
        index = list(range(start, min(start + size, len(data))))
        batch = data.batch(index, device)
        pairs = [data.pairs[i] for i in index]
        shape = batch.chosen.shape[1:]
        made = [
            stored_draws(config.sigma, config.loop.seed, pair_key(p), range(draws), shape)
            for p in pairs
        ]
        sigma, noise = (torch.stack(parts).to(device) for parts in zip(*made, strict=True))
        found = torch.stack(step.reference_errors(batch, sigma, noise), dim=-1).float().cpu()
        if number < len(starts):
            errors[index] = found
        progress.update("reference", turn + 1, turns, "errors of the reference on stored draws")
    if engine.world_size > 1:
        shared = errors.to(device)
        torch.distributed.all_reduce(shared)
        errors = shared.cpu()
    return errors
