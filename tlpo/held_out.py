"""Evaluation of a policy on pairs of unseen conditions while it is trained."""

import torch
from torch import Tensor

from ft2.config import EngineConfig
from ft2.engine import autocast
from ft2.tlpo.config import LoopConfig
from ft2.tlpo.data import PairData
from ft2.tlpo.dpo import implicit_accuracy
from ft2.tlpo.draws import evaluation_noise
from ft2.tlpo.step import PreferenceStep


class HeldOut:
    """Evaluation on pairs of unseen conditions, at fixed noise levels and with fixed noise.

    It uses no global random state, and keeps the reference's errors after the first time.
    """

    def __init__(
        self, step: PreferenceStep, data: PairData, config: LoopConfig, engine: EngineConfig
    ) -> None:
        """Take at most ``config.eval_pairs`` pairs of ``data``, in order."""
        self._step, self._data, self._config = step, data, config
        self._engine, self._batch = engine, engine.micro_batch_size
        self._count = min(len(data), config.eval_pairs)
        self._reference: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def __call__(self, device: torch.device) -> dict[str, object]:
        """Return the results by name; only ``pairs`` if there are none.

        They are ``implicit_accuracy`` (errors averaged over noise levels), ``d_chosen``,
        ``d_rejected``, and by noise level ``sigmas``, ``accuracy_by_sigma``,
        ``d_chosen_by_sigma`` and ``d_rejected_by_sigma``.
        """
        if not self._count:
            return {"pairs": 0}
        sides: list[tuple[Tensor, Tensor]] = []
        for number, start in enumerate(range(0, self._count, self._batch)):
            index = list(range(start, min(start + self._batch, self._count)))
            sides.append(self._differences(number, index, device))
        d_chosen, d_rejected = (torch.cat(side).double().cpu() for side in zip(*sides, strict=True))
        by_sigma = implicit_accuracy(d_chosen, d_rejected).mean(0)
        accuracy = implicit_accuracy(d_chosen.mean(1), d_rejected.mean(1))
        return {
            "pairs": self._count,
            "implicit_accuracy": float(accuracy.mean()),
            "d_chosen": float(d_chosen.mean()),
            "d_rejected": float(d_rejected.mean()),
            "sigmas": list(self._config.eval_sigmas),
            "accuracy_by_sigma": by_sigma.tolist(),
            "d_chosen_by_sigma": d_chosen.mean(0).tolist(),
            "d_rejected_by_sigma": d_rejected.mean(0).tolist(),
        }

    def _differences(
        self, number: int, index: list[int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        batch = self._data.batch(index, device)
        levels = torch.tensor(self._config.eval_sigmas)
        sigma = levels.expand(len(index), -1).to(device)
        noise = torch.stack([
            evaluation_noise(self._config.seed, self._data.pairs[i].pair_id, len(levels),
                             batch.chosen.shape[1:])
            for i in index
        ]).to(device)  # fmt: skip
        with autocast(self._engine, device.type):
            if len(self._reference) <= number:
                self._reference.append(self._step.reference_errors(batch, sigma, noise))
            policy = self._step.policy_errors(batch, sigma, noise)
        reference = self._reference[number]
        return policy[0] - reference[0], policy[1] - reference[1]
