"""What is looked at while a stage trains: sizes of experts, a gate's spread, conflict, speed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tlpo_toys import SHAPE, TARGETS, World, expert_config, toy_model
from torch import nn

from ft2.flow import add_noise
from ft2.lora import FusedLinear, expert_parameters, fused_linears, install_experts
from ft2.tlpo.config import LoopConfig
from ft2.tlpo.conflict import expert_conflict
from ft2.tlpo.data import PairData
from ft2.tlpo.diagnostics import find_alarms
from ft2.tlpo.draws import evaluation_noise
from ft2.tlpo.gate import FusionGate
from ft2.tlpo.perf import Clock, perf_metrics
from ft2.tlpo.probes import ExpertProbe, GateProbe
from ft2.tlpo.report import write_run_report
from ft2.tlpo.report_tables import held_out, noise_levels
from ft2.tlpo.update import clipped
from ft2.wan.model import TalkingModel


def random_experts(count: int, seed: int = 0, alpha: float = 6.0) -> TalkingModel:
    model = toy_model()
    install_experts(model.dit, TARGETS, count, 3, alpha)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in expert_parameters(model.dit):
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    return model


def test_sizes_of_an_expert_equal_the_products_that_are_never_made() -> None:
    model = random_experts(1)
    found = ExpertProbe(model.dit).look(evaluation=True)
    for block in range(2):
        up, change, frozen = 0.0, 0.0, 0.0
        for name, layer in fused_linears(model.dit):
            if name.startswith(f"blocks.{block}."):
                a, b, w = (p.detach().double().numpy() for p in
                           (layer.lora_A, layer.lora_B, layer.weight))  # fmt: skip
                up += (b**2).sum()
                change += ((2.0 * b @ a) ** 2).sum()  # alpha / rank = 2
                frozen += (w**2).sum()
        assert found["blocks"]["norm_b"][block] == pytest.approx(math.sqrt(up), rel=1e-5)
        ratio = math.sqrt(change / frozen)
        assert found["blocks"]["weight_change"][block] == pytest.approx(ratio, rel=1e-5)
    whole = math.hypot(*found["blocks"]["norm_b"])
    assert found["norm_b"] == pytest.approx(whole)
    assert ExpertProbe(model.dit).look(evaluation=False) == {}
    for _, layer in fused_linears(model.dit):
        nn.init.zeros_(layer.lora_B)
    fresh = ExpertProbe(model.dit).look(evaluation=True)
    assert fresh["norm_b"] == fresh["weight_change"] == 0


def gate_of(form: str = "figure", slots: int = 1) -> tuple[FusionGate, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    gate = FusionGate(2, 3, 5, form=form, slots=slots, hidden_dim=4)  # type: ignore[arg-type]
    for p in gate.parameters():
        p.data.copy_(torch.randn(p.shape, generator=g) * 0.5)
    return gate, torch.randn(50, 5, generator=g)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_gates_figures_equal_numpy(slots: int) -> None:
    gate, tau = gate_of(slots=slots)
    found = GateProbe(gate, tau, ("motion", "lip", "quality")).look(evaluation=True)
    w, b = gate.weight.detach().double().numpy(), gate.bias.detach().double().numpy()
    logits = np.einsum("rkd,ld->lrk", w, tau.double().numpy())
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    weights = shares + b
    entropy = -(shares * np.log(shares)).sum(-1).mean() / np.log(3)
    assert found["gate_entropy"] == pytest.approx(entropy, rel=1e-5)
    assert found["gate_sum"] == pytest.approx(weights.sum(-1).mean(), rel=1e-5)
    for k, name in enumerate(("motion", "lip", "quality")):
        assert found[f"gate_weight_{name}"] == pytest.approx(weights[..., k].mean(), rel=1e-5)
        layers = weights[..., k].reshape(10, 5, 2, slots).mean((1, 3)).T
        np.testing.assert_allclose(found["gate_weights"][name], layers, rtol=1e-5)
    assert found["gate_share_max"] == pytest.approx(shares.max(), rel=1e-5)
    mean = shares.reshape(-1, 3).mean(0)
    assert found["gate_share"] == pytest.approx(mean.max(), rel=1e-5)
    assert found["gate_share_of"] == ("motion", "lip", "quality")[mean.argmax()]


def test_only_competing_weights_have_an_entropy() -> None:
    gate, tau = gate_of("sigmoid")
    assert "gate_entropy" not in GateProbe(gate, tau, "abc").look(evaluation=False)
    alone = FusionGate(2, 1, 5)
    assert "gate_entropy" not in GateProbe(alone, tau, ["lip"]).look(evaluation=False)
    assert "gate_weights" not in GateProbe(alone, tau, ["lip"]).look(evaluation=False)


def test_a_collapsed_gate_is_told_at_its_step() -> None:
    gate, tau = gate_of()
    gate.weight.data *= 0.02
    tau, favour = torch.cat((tau, torch.ones(50, 1)), 1), torch.tensor([0.0, 0.02, 0.0])
    gate.weight = torch.nn.Parameter(
        torch.cat((gate.weight.data, favour.expand(2, 3)[..., None]), 2)
    )
    probe, lines = GateProbe(gate, tau, ("motion", "lip", "quality")), []
    for step in range(1, 6):
        gate.weight.data *= 4
        line = {"step": step, "loss": 0.6, **probe.look(evaluation=False)}
        lines.append(line)
    collapsed = [x["step"] for x in lines if x["gate_share"] > 0.9 or x["gate_entropy"] < 0.2]
    found = [a for a in find_alarms(lines) if a.name == "collapsed gate"]
    assert [a.step for a in found] == collapsed[:1]
    assert 1 < found[0].step < 5
    assert lines[collapsed[0] - 1]["gate_share_of"] == "lip"
    assert "the lip expert" in found[0].text


def test_a_gate_that_is_sharp_in_places_has_not_collapsed() -> None:
    gate = FusionGate(3, 3, 1)
    gate.weight.data[0, 0] = gate.weight.data[1, 1] = 9.0
    line = GateProbe(gate, torch.ones(50, 1), ("motion", "lip", "quality")).look(evaluation=False)
    assert line["gate_share_max"] > 0.99
    assert find_alarms([{"step": 1, "loss": 0.6, **line}]) == []


def test_conflict_is_the_cosine_of_outputs_with_and_without_an_expert(world: World) -> None:
    """Against W + B A in float64, clip by clip: what an expert adds to each linear's output."""
    model, names = random_experts(3), ("motion", "lip", "quality")
    config = expert_config(world).model_copy(
        update={"loop": LoopConfig(eval_sigmas=(0.3, 0.9), seed=4)}
    )
    cache = next(world.cache_dir.iterdir())
    from ft2.tlpo.cache import Cache

    data = PairData(world.pairs["lip"][:3], Cache(cache), config.mask)
    found = expert_conflict(model, data, config, names)
    assert found["pairs"] == 3
    assert found["timesteps"] == [300.0, 900.0]
    for level, sigma in enumerate((0.3, 0.9)):
        dots = np.zeros((2, 3, 3))
        for index, pair in enumerate(data.pairs):
            batch = data.batch([index], torch.device("cpu"))
            noise = evaluation_noise(4, pair.pair_id, 2, SHAPE)[level][None]
            for clean in (batch.chosen, batch.rejected):
                noisy = add_noise(clean, noise, torch.tensor([sigma]))
                for block, added in outputs_of(model, noisy, sigma, batch.cond).items():
                    dots[block] += added @ added.T
        for i, j in ((0, 1), (0, 2), (1, 2)):
            cosine = found["cosine"][f"{names[i]} and {names[j]}"]
            for block in range(2):
                norms = math.sqrt(dots[block, i, i] * dots[block, j, j])
                assert cosine[block][level] == pytest.approx(dots[block, i, j] / norms, abs=1e-4)
    assert not any(layer._forward_pre_hooks for _, layer in fused_linears(model.dit))


def outputs_of(model: TalkingModel, noisy, sigma: float, cond) -> dict[int, np.ndarray]:
    """Return, by block, each expert's part of all the block's outputs of one clip, [3, numbers]."""
    seen: dict[int, list[np.ndarray]] = {0: [], 1: []}
    right = FusedLinear.forward

    def spy(self: FusedLinear, x: torch.Tensor, gate=None) -> torch.Tensor:
        wide = x.detach().double().reshape(-1, x.shape[-1])
        base = self.weight.double()
        parts = []
        for k in range(3):
            rows = slice(3 * k, 3 * k + 3)
            changed = base + 2.0 * self.lora_B[:, rows].double() @ self.lora_A[rows].double()
            parts.append((wide @ changed.T - wide @ base.T).flatten().detach().numpy())
        seen[blocks[id(self)]].append(np.stack(parts))
        return right(self, x, gate)

    blocks = {id(layer): int(name.split(".")[1]) for name, layer in fused_linears(model.dit)}
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(FusedLinear, "forward", spy)
        model.velocity(noisy, torch.tensor([sigma]), cond)
    return {block: np.concatenate(parts, axis=1) for block, parts in seen.items()}


def test_reports_draw_what_was_looked_at(tmp_path: Path) -> None:
    gate, tau = gate_of()
    probe = GateProbe(gate, tau, ("motion", "lip", "quality"))
    model = random_experts(1)
    speed = {"perf_seconds_per_pair": 0.25, "perf_reference_share": 0.2, "perf_memory_gib": 2.0}
    lines = [
        {"step": step, "loss": 0.6, "grad_norm": 3.0, "grad_norm_clipped": 1.0, **speed,
         **probe.look(evaluation=step == 2), **ExpertProbe(model.dit).look(evaluation=step == 2)}
        for step in (1, 2)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    cosine = {"motion and lip": [[0.5, -0.25]]}
    table = {"pairs": 3, "timesteps": [300.0, 900.0], "cosine": cosine}
    (tmp_path / "conflict.json").write_text(json.dumps(table))
    unseen = {"pairs": 5, "implicit_accuracy": 0.6, "sigmas": [0.3, 0.9],
                "accuracy_by_sigma": [0.8, 0.4], "d_chosen_by_sigma": [-0.01, 0.002],
                "d_rejected_by_sigma": [0.0, 0.003]}  # fmt: skip
    text = write_run_report(tmp_path, "Run", {"alarms": [], "held_out": unseen}).read_text()
    for told in ("Gate: entropy", "Gate: weights", "|BA| / |W|", "Do the experts conflict?",
                 "0.25 s a pair", "20% of the time in the reference pass",
                 "<th>0.3</th><th>0.9</th>", "<td>-1.0e-02</td><td>+2.0e-03</td>",
                 "<td>0.80</td><td>0.40</td>", "layer 0, timestep 900: \u22120.250"):  # fmt: skip
        assert told in text
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "Speed" not in write_run_report(empty, "Run", {}).read_text()


def test_tables_take_runs_that_an_older_version_began() -> None:
    old = {"count": [2] * 10, "d_chosen": [0.1] * 10, "d_rejected": [0.2] * 10}
    new = {**old, "implicit_accuracy": [0.75] * 9 + [None]}
    new["count"] = [1] * 9 + [0]
    text = "".join(noise_levels([{"bins": old}, {"bins": old}, {"bins": new}]))
    assert text.count("<td>0.75</td>") == 9
    assert text.count("<td>+1.0e-01</td>") == 10
    assert "<td>3</td>" in text
    assert noise_levels([{"loss": 1.0}]) == held_out({"held_out": {"pairs": 0}}) == []


def test_no_held_out_pairs_or_one_expert_give_no_conflict(world: World) -> None:
    model, config = random_experts(3), expert_config(world)
    data = PairData([], None, config.mask)  # type: ignore[arg-type]
    assert expert_conflict(model, data, config, ("motion", "lip", "quality")) == {"pairs": 0}


def test_clipped_norms_and_speed() -> None:
    assert [clipped(n, 1.0) for n in (0.5, 1.0, 7.0)] == [0.5, 1.0, 1.0]
    assert clipped(7.0, 0.0) == 7.0
    assert math.isnan(clipped(math.nan, 1.0))
    p = nn.Parameter(torch.zeros(9))
    p.grad = torch.full((9,), 3.0)
    before = float(nn.utils.clip_grad_norm_([p], 2.0))
    assert clipped(before, 2.0) == pytest.approx(float(p.grad.norm()), rel=1e-6)

    clock = Clock(torch.device("cpu"))
    with clock.part("step"):
        for _ in range(2):
            with clock.part("data"):
                pass
    parts = clock.take()
    assert 0 < parts["data"] < parts["step"]
    assert clock.take() == {}

    class One:
        world_size = 1

    seconds = {"step": 4.0, "data": 1.0, "reference": 2.0}
    found = perf_metrics(seconds, 8, 3e12, One(), torch.device("cpu"))  # type: ignore[arg-type]
    assert found.pop("perf_memory_gib") > 0.05
    assert found == {"perf_seconds_per_pair": 0.5, "perf_tflops": 6.0, "perf_data_share": 0.25,
                     "perf_reference_share": 0.5}  # fmt: skip
