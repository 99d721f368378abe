"""The two stages: one expert on one dimension's pairs, and the gate over frozen experts."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ft2.flow import TIMESTEP_SCALE
from ft2.lora import ADAPTER_WEIGHTS, install_experts, read_adapter, remove_experts, save_expert
from ft2.pairs import STORES, read_pairs
from ft2.report.data import GateMap
from ft2.runs import Progress, Silent, check_output, hash_file
from ft2.tlpo.cache import fill_cache, unique_clips
from ft2.tlpo.config import ExpertConfig, FusionConfig, StageConfig
from ft2.tlpo.diagnostics import gate_alarms, latent_alarms
from ft2.tlpo.experts import ExpertName, install_policy_experts, ordered
from ft2.tlpo.gate import FusionGate, make_gate, share_entropy, timestep_features
from ft2.tlpo.opening import check_start, opened_run
from ft2.tlpo.passes import GateFunction, base_gate
from ft2.tlpo.policy import save_policy
from ft2.tlpo.report import write_run_report
from ft2.tlpo.stage import Result, Stage, constant, open_stage, prepare_model, read_view
from ft2.wan.model import TalkingModel


def train_expert(
    config: ExpertConfig,
    output: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    model: TalkingModel | None = None,
) -> Result:
    """Train one expert LoRA; the run directory gets ``adapter/`` (PEFT layout).

    Args:
        config: Stage 1.
        output: Run directory.
        resume: Go on with an existing run; a complete one is returned as it is.
        progress: Where to report.
        model: The base if it is already loaded; its experts, if any, are removed, and it is
            given back as a plain base.

    Returns:
        The run's result: ``dimension``, ``pairs``, ``steps``, ``stopped``, ``held_out_start``,
        ``held_out``, ``parameters``, ``norm_b``.

    Raises:
        UsageError: The dataset has too few pairs, or an input does not fit.
        Interrupted: A signal came; ``resume`` goes on.
    """
    check_output(output, resume=resume)
    pairs = read_view(config, config.view)
    if model is None:
        check_start(config, output)
    with opened_run(config, output, resume=resume) as run:
        if run.result is not None:
            return run.result
        stage = open_stage(run, config, pairs, model, progress or Silent())
        try:
            result = _expert_stage(config, stage)
        finally:
            remove_experts(stage.model.dit)
        if run.writes:
            write_run_report(run.path, f"Expert: {config.dimension}", result)
        run.finish(result)
    return result


def _expert_stage(config: ExpertConfig, stage: Stage) -> Result:
    dit, adapter = stage.model.dit, stage.run.path / "adapter"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        lora = config.lora
        count = install_experts(dit, lora.targets, 1, lora.rank, lora.alpha)
    trainable = {n: p for n, p in dit.named_parameters() if p.requires_grad}
    about = {"base": stage.base, "dimension": config.dimension}
    result: Result = {"stage": "expert", "dimension": config.dimension, "linears": count}
    result["parameters"] = sum(p.numel() for p in trainable.values())
    result |= stage.train(
        config,
        f"expert {config.dimension}",
        constant(stage.model, (1.0,)),
        base_gate,
        trainable,
        lambda: save_expert(dit, 0, adapter, about),
        {},
    )
    result["norm_b"] = _norm_b(adapter)
    return result


def train_fusion(
    config: FusionConfig,
    output: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    model: TalkingModel | None = None,
) -> Result:
    """Train the gate over frozen experts; the run directory gets ``policy/``.

    Args:
        config: Stage 2.
        output: Run directory.
        resume: Go on with an existing run; a complete one is returned as it is.
        progress: Where to report.
        model: The base if it is already loaded; given back as a plain base.

    Returns:
        The run's result: as of `train_expert`, and ``mean_weights`` of the experts, ``entropy``
        of the softmax part (1 is uniform).

    Raises:
        UsageError: Experts are missing or do not fit, or there are too few pairs.
        Interrupted: A signal came; ``resume`` goes on.
    """
    check_output(output, resume=resume)
    experts = ordered(dict(config.experts.items()))
    pairs = read_view(config, config.view)
    if model is None:
        check_start(config, output)
    with opened_run(config, output, resume=resume) as run:
        if run.result is not None:
            return run.result
        stage = open_stage(run, config, pairs, model, progress or Silent())
        try:
            install_policy_experts(stage.model, experts)
            result, weights = _fusion_stage(config, stage, experts)
        finally:
            remove_experts(stage.model.dit)
        if run.writes:
            write_run_report(run.path, "Fusion gate", result, weights)
        run.finish(result)
    return result


def _fusion_stage(
    config: FusionConfig, stage: Stage, experts: Mapping[ExpertName, Path]
) -> tuple[Result, GateMap]:
    model, policy = stage.model, stage.run.path / "policy"
    gate, reference = _make_gates(config, model, len(experts))
    trained = copy.deepcopy(gate)
    tau = _levels(config, model)  # now: ZeRO-3 will have the embedder in parts
    in_reference: dict[str, object] = {}
    if config.reference == "initial":
        files = {name: hash_file(path / ADAPTER_WEIGHTS) for name, path in experts.items()}
        in_reference = {"experts": files, "gate": config.gate.model_dump(mode="json")}
    trainable = {f"gate.{n}": p for n, p in gate.named_parameters() if p.requires_grad}
    result: Result = {"stage": "fusion", "experts": list(experts), "store": config.store}
    result["parameters"] = sum(p.numel() for p in trainable.values())
    result |= stage.train(
        config,
        "fusion",
        _gate_function(config, model, gate),
        reference,
        trainable,
        lambda: save_policy(policy, experts, gate, config.gate, stage.base, _average(gate, tau)),
        in_reference,
        lambda: trained.load_state_dict({n: t.detach() for n, t in gate.state_dict().items()}),
    )
    result |= _gate_findings(trained, tau, list(experts), result)
    return result, _gate_map(trained, tau, list(experts))


@torch.no_grad()
def _gate_map(gate: FusionGate, tau: Tensor, experts: list[ExpertName]) -> GateMap:
    """Return the gate's weights for the heat map (the mean over a layer's linears)."""
    levels = _LEVELS[1::2]
    table = gate(tau[1::2]).cpu()
    table = table.mean(2) if table.ndim == 4 else table
    weights: dict[str, list[list[float]]] = {
        name: table[..., k].t().tolist() for k, name in enumerate(experts)
    }
    return GateMap((TIMESTEP_SCALE * levels).tolist(), weights)


def _gate_findings(
    gate: FusionGate, tau: Tensor, experts: list[ExpertName], result: Mapping[str, object]
) -> Result:
    """Return mean weights, entropy, total strength and alarms of a trained gate."""
    with torch.no_grad():
        table, share = gate(tau).cpu(), gate.shares(tau).cpu()
    axes = tuple(range(table.ndim - 1))
    greatest = dict(zip(experts, share.amax(tuple(range(share.ndim - 1))).tolist(), strict=True))
    entropy = share_entropy(share)
    steps, alarms = result["steps"], result["alarms"]
    assert isinstance(steps, int)
    assert isinstance(alarms, list)
    if gate.form != "sigmoid":
        alarms = alarms + [asdict(a) for a in gate_alarms(steps, entropy, greatest)]
    total = table.sum(-1)
    return {
        "mean_weights": dict(zip(experts, table.mean(axes).tolist(), strict=True)),
        "entropy": entropy,
        "greatest_share": greatest,
        "total_weight": [float(total.min()), float(total.mean()), float(total.max())],
        "alarms": alarms,
    }


def encode_dataset(
    config: StageConfig,
    cache_dir: Path,
    progress: Progress | None = None,
    model: TalkingModel | None = None,
) -> Result:
    """Encode every clip that any store of a dataset uses; what is there already is kept.

    Args:
        config: Any stage: its dataset, model, device and encoding count.
        cache_dir: Where to write; give it to the stages as ``cache``.
        progress: Where to report.
        model: The base if it is already loaded.

    Returns:
        ``clips`` and ``conditions`` in the cache, its ``folder``, ``latent_std`` of the clips and
        ``alarms`` where that is far from 1.
    """
    pairs = [pair for store in STORES for pair in read_pairs(config.dataset, store)]
    clips = unique_clips(pairs)
    model = prepare_model(model, config)
    cache = fill_cache(clips, cache_dir, model, config.encoding, progress)
    return {
        "clips": len(cache.clips),
        "conditions": len(cache.conditions),
        "folder": str(cache.path),
        "latent_std": (std := cache.latent_std([clip.clip_id for clip in clips])),
        "alarms": [asdict(alarm) for alarm in latent_alarms(std)],
    }


def _norm_b(adapter: Path) -> float:
    """Return the norm of all up-projections in the saved file: 0 means nothing was learned."""
    tensors = read_adapter(adapter)[1]
    return sum(float(t.norm() ** 2) for n, t in tensors.items() if ".lora_B." in n) ** 0.5


_LEVELS = torch.linspace(0.02, 1, 50)
"""Noise levels at which a trained gate is looked at."""


def _levels(config: FusionConfig, model: TalkingModel) -> Tensor:
    """Return timestep features of these levels."""
    return timestep_features(model.dit, _LEVELS.to(model.device), config.gate.input)


@torch.no_grad()
def _average(gate: FusionGate, tau: Tensor) -> list[list[float]]:
    """Return the gate's mean weights over noise levels (and a layer's linears), [layers][K]."""
    table = gate(tau).mean(0)
    mean: list[list[float]] = (table.mean(1) if table.ndim == 3 else table).tolist()
    return mean


def _gate_function(
    config: FusionConfig, model: TalkingModel, gate: FusionGate
) -> Callable[[Tensor], Tensor]:
    def weights(sigma: Tensor) -> Tensor:
        out: Tensor = gate(timestep_features(model.dit, sigma, config.gate.input))
        return out

    return weights


def _make_gates(
    config: FusionConfig, model: TalkingModel, num_experts: int
) -> tuple[FusionGate, GateFunction]:
    """Return the gate to train and the reference's gate function, both in their initial state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        gate = make_gate(config.gate, model.dit, num_experts).to(model.device)
    gate.bias.requires_grad_(config.gate.train_bias)
    if config.reference == "base":
        return gate, base_gate
    initial = copy.deepcopy(gate).requires_grad_(False)
    return gate, _gate_function(config, model, initial)
