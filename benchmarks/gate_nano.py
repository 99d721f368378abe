"""What gates are worth over nano's experts: held-out pairs, by noise level and by gate.

    python benchmarks/gate_nano.py NAME=RUN ... --dataset DIR --cache DIR

RUN is the output of a `ft2 tlpo compare`. Judged on pairs of all three dimensions from conditions
that neither experts nor gate have seen. Merges: their loss against the base by noise level and
strength, for all experts and for each alone, of the first seed. Where one strength is best at all
levels, no gate can gain by the level. Gates of several inputs and forms, with weight decay and for
more steps, trained on fusion pairs over the experts of every seed: ln 2 - loss against the merge at
2/3 where all start, mean and standard deviation over seeds.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gate_toy import mean_and_std
from machine import header
from torch import Tensor

from ft2.config import load_config
from ft2.files import read_json
from ft2.pairs import DIMENSIONS
from ft2.runs import Silent
from ft2.tlpo import dpo
from ft2.tlpo.cache import fill_cache, unique_clips
from ft2.tlpo.config import FusionConfig
from ft2.tlpo.data import PairData
from ft2.tlpo.draws import evaluation_noise
from ft2.tlpo.experts import ExpertName, install_policy_experts, ordered
from ft2.tlpo.gate import constant_gate
from ft2.tlpo.methods import changed
from ft2.tlpo.passes import GateFunction, pair_errors
from ft2.tlpo.policy import load_policy
from ft2.tlpo.stage import prepare_model
from ft2.tlpo.train import train_fusion
from ft2.tlpo.views import read_view
from ft2.wan.model import TalkingModel

RESULTS = Path(__file__).parent / "results" / "gate_nano.json"
LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)
STRENGTHS = (0.0, 1 / 3, 2 / 3, 1.0, 4 / 3, 2.0)
START = 2 / 3
"""Every expert's strength where gates start: their reference."""
VARIANTS: dict[str, dict[str, object]] = {
    "static merge": {"gate.input": "none", "gate.per_layer": False},
    "without timestep": {"gate.input": "none"},
    "without layer": {"gate.per_layer": False},
    "gate": {},
    "gate from the sinusoid": {"gate.input": "sinusoid"},
    "gate, hidden layer": {"gate.form": "mlp"},
    "gate, weight decay 1": {"engine.weight_decay": 1.0},
    "gate, 120 steps": {"loop.num_steps": 120},
}
PLAIN = ["engine.kind=torch", "engine.zero_stage=0", "loop.eval_every=1000", "loop.eval_pairs=48",
         "loop.eval_sigmas=[0.6]", "loop.checkpoint_every=1000"]  # fmt: skip


class HeldOutPairs:
    """Held-out pairs of all dimensions of a dataset, encoded, and errors of policies on them."""

    def __init__(self, config: FusionConfig, model: TalkingModel, cache: Path) -> None:
        """Read and encode the pairs."""
        self.model, self._beta = model, config.dpo.beta
        pairs = read_view(changed(config, {"store": "mixed"}), "mixed")[1]
        encoded = fill_cache(unique_clips(pairs), cache, model, config.encoding, Silent())
        data = PairData(pairs, encoded, config.mask, None)
        self._batch = data.batch(list(range(len(pairs))), torch.device("cpu"))
        shape = self._batch.chosen.shape[1:]
        noise = [evaluation_noise(0, p.pair_id, len(LEVELS), shape) for p in pairs]
        self._noise, self.count = torch.stack(noise), len(pairs)

    @torch.no_grad()
    def errors(self, gate: GateFunction) -> tuple[Tensor, Tensor]:
        """Return a policy's errors on (chosen, rejected), each [pairs, levels]."""
        found = []
        for place, level in enumerate(LEVELS):
            sigma = torch.full((self.count, 1), level)
            noise = self._noise[:, place : place + 1]
            found.append(pair_errors(self.model, self._batch, sigma, noise, gate))
        chosen, rejected = zip(*found, strict=True)
        return torch.cat(chosen, 1), torch.cat(rejected, 1)

    def losses(self, ours: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of every pair at every level against a reference, [pairs, levels]."""
        pairs = dpo.PairErrors(*(side.reshape(-1, 1) for side in (*ours, *reference)))
        z = dpo.margin(*pairs.differences(), self._beta)
        return dpo.dpo_losses(z).reshape(ours[0].shape)


def study(run: Path, dataset: Path, cache: Path) -> dict[str, Any]:
    """Return what merges and gates over the experts of a comparison's seeds are worth.

    Args:
        run: Output of `ft2 tlpo compare`; the experts that its sweep took.
        dataset: What they were trained on.
        cache: Its encoding.
    """
    config = load_config(FusionConfig, "nano/fusion",
                         [f"dataset={dataset}", f"cache={cache}", *PLAIN])  # fmt: skip
    model = prepare_model(None, config)
    seeds = sorted(int(p.name.removeprefix("seed-")) for p in run.glob("seed-*"))
    gates: dict[str, list[float]] = {}
    for seed in seeds:  # each seed holds out conditions of its own
        config = changed(config, {"loop.seed": seed})
        held_out = HeldOutPairs(config, model, cache)
        if seed == seeds[0]:
            by_level = merges(held_out, experts_of(run, seed))
        experts = experts_of(run, seed)
        for name, gain in gate_gains(config, held_out, experts).items():
            print(run.name, seed, name, round(gain, 4), flush=True)
            gates.setdefault(name, []).append(gain)
    return {
        "pairs": held_out.count,
        "levels": LEVELS,
        "strengths": STRENGTHS,
        "merges of the first seed": by_level,
        "gain of gates": {name: mean_and_std(found) for name, found in gates.items()},
    }


def experts_of(run: Path, seed: int) -> dict[ExpertName, Path]:
    """Return a seed's experts as the comparison's sweep chose them."""
    found: dict[ExpertName, Path] = {}
    for dimension in DIMENSIONS:
        sweep = run / "sweeps" / f"expert-{dimension}.json"
        number = read_json(sweep)["candidate"] if sweep.is_file() else 0
        found[dimension] = run / f"seed-{seed}" / f"expert-{dimension}-{number}"
    return ordered(found)


def gate_gains(
    config: FusionConfig, held_out: HeldOutPairs, experts: Mapping[ExpertName, Path]
) -> dict[str, float]:
    """Return each trained gate's gain over its start on held-out pairs: ln 2 - loss."""
    model = held_out.model
    install_policy_experts(model, experts)
    start = held_out.errors(constant(model, [START] * 3))
    gains = {}
    for name, changes in VARIANTS.items():
        own = {**changes, "experts": dict(experts)}
        with TemporaryDirectory() as folder:
            train_fusion(changed(config, own), Path(folder) / "gate", model=model)
            policy = load_policy(Path(folder) / "gate", model)
            loss = held_out.losses(held_out.errors(policy.gate), start).mean()
        gains[name] = math.log(2) - float(loss)
    return gains


def merges(held_out: HeldOutPairs, experts: Mapping[ExpertName, Path]) -> dict[str, Any]:
    """Return the loss against the base by noise level and strength: all experts, and each alone."""
    model = held_out.model
    install_policy_experts(model, experts)
    base = held_out.errors(constant(model, [0.0] * 3))
    report: dict[str, Any] = {}
    for who in ("all", *DIMENSIONS):
        rows = []
        for strength in STRENGTHS:
            weights = [strength * (who in ("all", d)) for d in DIMENSIONS]
            rows.append(held_out.losses(held_out.errors(constant(model, weights)), base).mean(0))
        table = torch.stack(rows, dim=1)  # [levels, strengths]
        best = [STRENGTHS[i] for i in table.argmin(1).tolist()]
        report[who] = {"loss": table.tolist(), "best_strength": best}
    return report


def constant(model: TalkingModel, weights: list[float]) -> Callable[[Tensor], Tensor]:
    """Return a gate function of constant weights."""
    return lambda sigma: constant_gate(len(sigma), model.num_layers, weights)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="outputs of comparisons")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": header()}
    for text in given.runs:
        name, _, folder = text.partition("=")
        report[name] = study(Path(folder), given.dataset, given.cache)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
