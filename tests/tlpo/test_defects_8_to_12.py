"""Rows 8 to 12 of the defects of public preference trainers, and two more.

Each check passes here and fails when its defect is planted. Row 7, no gradient sync, needs two
processes: test_tlpo_ranks.py.
"""

import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from test_export import expert, loaded, output, read_by_diffusers
from test_step import adapted, draws, make_batch
from tlpo_defects import Defects, Patch, make
from tlpo_toys import World, expert_config
from torch import Tensor

import ft2.tlpo.dpo as dpo
import ft2.tlpo.loop as loop_module
from ft2.config import EngineConfig
from ft2.engine import Engine, TorchEngine
from ft2.lora import read_adapter
from ft2.runs import RunDir, Silent
from ft2.tlpo import diagnostics, export
from ft2.tlpo.config import SigmaConfig
from ft2.tlpo.draws import levels
from ft2.tlpo.export import export_lora
from ft2.tlpo.loop import StopRule
from ft2.tlpo.train import train_expert
from ft2.wan.condition import Conditioning

DEFECTS = Defects()
ROWS = [*map(str, range(8, 13)), "accumulation", "bins"]


def plant_8(patch: Patch) -> None:
    right = dpo.margin
    patch.setattr(dpo, "margin", lambda w, x, beta, k=0.0: right(w, x, 5000.0, k))


@DEFECTS.seen_by("8 a config key that is ignored", plant_8)
def check_8(world: World, folder: Path) -> None:
    model = adapted(seed=6)
    base = make(model, beta=5)(make_batch(), *draws())[0]
    changes = {"beta": 6, "positive_weight": 1, "target_probability": 0.9, "loss": "ipo",
               "sft": 0.1, "anchor": 0.1}  # fmt: skip
    for name, value in changes.items():
        other = make(model, **{"beta": 5, name: value})(make_batch(), *draws())[0]
        assert float((other - base).detach().abs()) > 1e-5, name


def plant_9(patch: Patch) -> None:
    right = TorchEngine.load

    def forgetful(self: TorchEngine, directory: Path) -> None:
        right(self, directory)
        self._optimizer.state.clear()

    patch.setattr(TorchEngine, "load", forgetful)


@DEFECTS.seen_by("9 state that a resume loses", plant_9)
def check_9(world: World, folder: Path) -> None:
    class Crash(Silent):
        def update(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage.startswith("expert") and done == 3:
                raise RuntimeError("killed")

    config = expert_config(world, steps=4)
    loop = config.loop.model_copy(update={"checkpoint_every": 2, "eval_every": 4, "eval_pairs": 2})
    config = config.model_copy(update={"loop": loop})
    train_expert(config, folder / "whole", model=world.model)
    with pytest.raises(RuntimeError, match="killed"):
        train_expert(config, folder / "cut", model=world.model, progress=Crash())
    train_expert(config, folder / "cut", model=world.model, resume=True)
    whole, cut = (read_adapter(folder / n / "adapter")[1] for n in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def plant_9_rule(patch: Patch) -> None:
    right = loop_module._restore

    def forgetful(run: RunDir, engine: Engine, rule: StopRule) -> int:
        return right(run, engine, StopRule(rule.limit, rule.decay))

    patch.setattr(loop_module, "_restore", forgetful)


@DEFECTS.seen_by("9 stop rule that a resume loses", plant_9_rule)
def check_9_rule(world: World, folder: Path) -> None:
    """Stopped by its rule just after a resume, as a straight run is: the rule has a long memory."""

    config = expert_config(world, steps=30)
    settings = config.dpo.model_copy(
        update={"beta": 400.0, "min_gradient_factor": 0.45, "stop_decay": 0.8}
    )
    loop = config.loop.model_copy(update={"checkpoint_every": 1, "eval_pairs": 2})
    config = config.model_copy(update={"loop": loop, "dpo": settings})
    whole = train_expert(config, folder / "whole", model=world.model)["steps"]
    assert 3 < whole < 30

    class CrashBefore(Silent):
        def update(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage.startswith("expert") and done == whole - 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_expert(config, folder / "cut", model=world.model, progress=CrashBefore())
    assert train_expert(config, folder / "cut", model=world.model, resume=True)["steps"] == whole


def plant_10(patch: Patch) -> None:
    right = Conditioning.cat.__func__

    def dropping(cls: type, parts: list[Conditioning]) -> Conditioning:
        whole = right(cls, parts)
        kept = torch.rand(len(whole)) > 0.5
        return replace(whole, text=whole.text * kept[:, None, None])

    patch.setattr(Conditioning, "cat", classmethod(dropping))


@DEFECTS.seen_by("10 dropout differs between sides or passes", plant_10)
def check_10(world: World, folder: Path) -> None:
    model = adapted(seed=6)
    velocity, seen = model.velocity, []

    def watch(x: Tensor, sigma: Tensor, cond: Conditioning, gate: Tensor | None = None) -> Tensor:
        seen.append(cond)
        return velocity(x, sigma, cond, gate)

    model.velocity = watch  # type: ignore[method-assign]
    torch.manual_seed(0)
    make(model)(make_batch(), *draws())
    halves = [half for cond in seen for half in cond.text.chunk(2)]
    assert len(halves) == 4  # chosen and rejected, reference and policy
    assert all(torch.equal(half, halves[0]) for half in halves)


def plant_11(patch: Patch) -> None:
    patch.setattr(torch.optim.AdamW, "step", lambda self: None)


@DEFECTS.seen_by("11 lora_B stays zero", plant_11)
def check_11(world: World, folder: Path) -> None:
    config = expert_config(world, steps=1)
    loop = config.loop.model_copy(update={"eval_pairs": 2})
    result = train_expert(
        config.model_copy(update={"loop": loop}), folder / "run", model=world.model
    )
    saved = read_adapter(folder / "run" / "adapter")[1]
    norms = [float(t.norm()) for name, t in saved.items() if ".lora_B." in name]
    assert min(norms) > 0
    assert result["norm_b"] > 0


def plant_12(patch: Patch) -> None:
    patch.setitem(export.WAN_NAMES, "attn1.to_q", "self_attn.to_q")


@DEFECTS.seen_by("12 a consumer ignores the LoRA file", plant_12)
def check_12(world: World, folder: Path) -> None:
    path = expert(folder, "lip", 1)
    for form in ("comfyui", "kohya", "diffsynth"):
        export_lora(path, form, folder / f"{form}.safetensors")
        try:
            converted = read_by_diffusers(folder / f"{form}.safetensors", form)
        except (KeyError, ValueError) as error:
            raise AssertionError(f"{form}: {error}") from error
        assert len(converted) == 2 * (16 if form != "kohya" else 20)
        assert output(loaded(converted)).isfinite().all()


def plant_sum(patch: Patch) -> None:
    patch.setattr(TorchEngine, "backward", lambda self, loss: loss.backward())


@DEFECTS.seen_by("accumulation adds up instead of averaging", plant_sum)
def check_accumulation(world: World, folder: Path) -> None:
    """Eight pairs at once or one by one; ``eps`` is above the rounding of sums."""
    found = []
    for micro, turns in ((8, 1), (1, 8)):
        config = expert_config(world, steps=3)
        engine = EngineConfig(learning_rate=0.1, eps=0.1, max_grad_norm=0.0,
                              micro_batch_size=micro, accumulation_steps=turns)  # fmt: skip
        loop = config.loop.model_copy(update={"eval_pairs": 2})
        config = config.model_copy(update={"engine": engine, "loop": loop})
        train_expert(config, folder / str(micro), model=world.model)
        found.append(read_adapter(folder / str(micro) / "adapter")[1])
    assert max(float(t.abs().max()) for n, t in found[0].items() if ".lora_B." in n) > 1e-3
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=1e-6)


def plant_bins(patch: Patch) -> None:
    right = diagnostics.noise_bins
    patch.setattr(
        diagnostics, "noise_bins", lambda stats, kept, _: right(stats, kept, SigmaConfig())
    )


@DEFECTS.seen_by("bins of another distribution of noise levels", plant_bins)
def check_bins(world: World, folder: Path) -> None:
    """Each tenth of a shifted logit-normal distribution has the pairs of its own noise levels."""
    config = SigmaConfig(mean=0.3, std=1.2, shift=3.0)
    normal = NormalDist(config.mean, config.std)
    plain = [1 / (1 + math.exp(-normal.inv_cdf(k / 10))) for k in range(1, 10)]
    edges = [0.0, *(3 * s / (1 + 2 * s) for s in plain), 1.0]
    sigma = levels(config, 400, torch.Generator().manual_seed(0))[:, None]
    same = dict.fromkeys(("sigma", "d_chosen", "d_rejected"), sigma)
    flat = {name: torch.ones(400) for name in ("loss", "margin", "weight")}
    bins = diagnostics.step_metrics({**same, **flat}, config)["bins"]
    assert bins["count"] == [40] * 10
    for low, high, mean in zip(edges, edges[1:], bins["d_chosen"], strict=False):
        assert low < mean < high


@pytest.mark.parametrize("name", DEFECTS)
def test_sound(name: str, world: World, tmp_path: Path) -> None:
    DEFECTS.sound(name, world, tmp_path)


@pytest.mark.parametrize("name", DEFECTS)
def test_seen_when_planted(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DEFECTS.planted(name, world, tmp_path, monkeypatch)


def test_all_rows_are_here() -> None:
    numbers = list(dict.fromkeys(name.split()[0] for name in DEFECTS))
    assert numbers == ROWS
