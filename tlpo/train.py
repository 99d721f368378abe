"""The two stages: one expert on one dimension's pairs, and the gate over frozen experts."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ft2.lora import ADAPTER_WEIGHTS, install_experts, read_adapter, remove_experts, save_expert
from ft2.pairs import STORES, read_pairs
from ft2.report.data import GateMap
from ft2.runs import Progress, Silent, check_output, hash_file
from ft2.tlpo.cache import fill_cache, unique_clips
from ft2.tlpo.config import ExpertConfig, FusionConfig, StageConfig
from ft2.tlpo.conflict import record_conflict
from ft2.tlpo.diagnostics import latent_alarms
from ft2.tlpo.experts import ExpertName, install_policy_experts, ordered
from ft2.tlpo.gate import FusionGate, make_gate, timestep_features
from ft2.tlpo.gate_findings import average, gate_findings, gate_map, levels
from ft2.tlpo.opening import check_start, opened_run
from ft2.tlpo.passes import GateFunction, base_gate
from ft2.tlpo.policy_files import save_policy
from ft2.tlpo.probes import ExpertProbe, GateProbe
from ft2.tlpo.report import write_run_report
from ft2.tlpo.stage import Result, Stage, constant, open_stage, prepare_model
from ft2.tlpo.views import read_view
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
    return _run_stage(
        config, output, f"Expert: {config.dimension}", partial(_expert_stage, config),
        resume=resume, progress=progress, model=model,
    )  # fmt: skip


def _expert_stage(config: ExpertConfig, stage: Stage) -> tuple[Result, None]:
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
        probe=ExpertProbe(dit),
    )
    result["norm_b"] = _norm_b(adapter)
    return result, None


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
    return _run_stage(
        config, output, "Fusion gate", partial(_fusion_stage, config, experts),
        resume=resume, progress=progress, model=model,
    )  # fmt: skip


def _fusion_stage(
    config: FusionConfig, experts: Mapping[ExpertName, Path], stage: Stage
) -> tuple[Result, GateMap]:
    model, policy = stage.model, stage.run.path / "policy"
    install_policy_experts(model, experts)
    gate, reference = _make_gates(config, model, len(experts))
    trained = copy.deepcopy(gate)
    tau = levels(model, config.gate.input)  # now: ZeRO-3 will have the embedder in parts
    in_reference: dict[str, object] = {}
    if config.reference == "initial":
        files = {name: hash_file(path / ADAPTER_WEIGHTS) for name, path in experts.items()}
        in_reference = {"experts": files, "gate": config.gate.model_dump(mode="json")}
    trainable = {f"gate.{n}": p for n, p in gate.named_parameters() if p.requires_grad}
    result: Result = {"stage": "fusion", "experts": list(experts), "store": config.store}
    result["parameters"] = sum(p.numel() for p in trainable.values())
    result["conflict"] = record_conflict(stage.run, model, stage.unseen, config, list(experts))
    result |= stage.train(
        config,
        "fusion",
        _gate_function(config, model, gate),
        reference,
        trainable,
        lambda: save_policy(policy, experts, gate, config.gate, stage.base, average(gate, tau)),
        in_reference,
        lambda: trained.load_state_dict({n: t.detach() for n, t in gate.state_dict().items()}),
        GateProbe(gate, tau, list(experts)),
    )
    result |= gate_findings(trained, tau, list(experts))
    return result, gate_map(trained, tau, list(experts))


def _run_stage(
    config: ExpertConfig | FusionConfig,
    output: Path,
    title: str,
    work: Callable[[Stage], tuple[Result, GateMap | None]],
    *,
    resume: bool,
    progress: Progress | None,
    model: TalkingModel | None,
) -> Result:
    """Open a run, have ``work`` train in it, and write its report and its result."""
    check_output(output, resume=resume)
    pairs = read_view(config, config.view)
    if model is None:
        check_start(config, output)
    with opened_run(config, output, resume=resume) as run:
        if run.result is not None:
            return run.result
        stage = open_stage(run, config, pairs, model, progress or Silent())
        try:
            result, weights = work(stage)
        finally:
            remove_experts(stage.model.dit)
        if run.writes:
            write_run_report(run.path, title, result, weights)
        run.finish(result)
    return result


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
