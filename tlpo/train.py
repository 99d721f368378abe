"""The two stages: one expert on one dimension's pairs, and the gate over frozen experts."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ft2.engine import local_device, make_engine, rank_zero_first
from ft2.lora import install_experts, read_adapter, remove_experts, save_expert
from ft2.pairs import STORES, Dimension, Preference, Store, read_pairs
from ft2.runs import Progress, RunDir, Silent, check_output
from ft2.tlpo.cache import Cache, fill_cache, model_hash, unique_clips
from ft2.tlpo.config import ExpertConfig, FusionConfig, StageConfig
from ft2.tlpo.data import PairData, require_pairs, split_held_out
from ft2.tlpo.gate import (
    FusionGate,
    constant_gate,
    features_dim,
    softmax_entropy,
    timestep_features,
)
from ft2.tlpo.loop import HeldOut, run_loop
from ft2.tlpo.policy import install_policy_experts, ordered, save_policy
from ft2.tlpo.step import GateFunction, PreferenceStep, base_gate
from ft2.wan.model import TalkingModel
from ft2.wan.weights import load_talking_model

Result = dict[str, object]


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
    pairs = _read(config, config.dimension)
    run = RunDir.open(output, config=config, resume=resume)
    if run.result is not None:
        return run.result
    stage = _load(run, config, pairs, model, progress or Silent())
    try:
        result = _expert_stage(config, stage)
    finally:
        remove_experts(stage.model.dit)
    run.finish(result)
    return result


def _expert_stage(config: ExpertConfig, stage: "_Stage") -> Result:
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
        _constant(stage.model, (1.0,)),
        base_gate,
        trainable,
        lambda: save_expert(dit, 0, adapter, about),
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
    experts = ordered(config.experts)
    pairs = _read(config, config.store)
    run = RunDir.open(output, config=config, resume=resume)
    if run.result is not None:
        return run.result
    stage = _load(run, config, pairs, model, progress or Silent())
    try:
        install_policy_experts(stage.model, experts)
        result = _fusion_stage(config, stage, experts)
    finally:
        remove_experts(stage.model.dit)
    run.finish(result)
    return result


def _fusion_stage(
    config: FusionConfig, stage: "_Stage", experts: Mapping[Dimension, Path]
) -> Result:
    model, policy = stage.model, stage.run.path / "policy"
    gate, reference = _make_gates(config, model, len(experts))
    trainable = {f"gate.{n}": p for n, p in gate.named_parameters() if p.requires_grad}
    result: Result = {"stage": "fusion", "experts": list(experts), "store": config.store}
    result["parameters"] = sum(p.numel() for p in trainable.values())
    result |= stage.train(
        config,
        "fusion",
        _gate_function(config, model, gate),
        reference,
        trainable,
        lambda: save_policy(policy, experts, gate, config.gate.input, stage.base),
    )
    levels = torch.linspace(0.02, 1, 50, device=model.device)
    tau = timestep_features(model.dit, levels, config.gate.input)
    mean = gate(tau).detach().mean((0, 1)).tolist()
    result["mean_weights"] = dict(zip(experts, mean, strict=True))
    result["entropy"] = softmax_entropy(gate, tau)
    return result


@dataclass(frozen=True)
class _Stage:
    """What a stage works with: run directory, frozen base, encoded pairs."""

    run: RunDir
    model: TalkingModel
    base: str
    data: PairData
    unseen: PairData
    progress: Progress

    def train(
        self,
        config: StageConfig,
        name: str,
        gate: GateFunction,
        reference: GateFunction,
        trainable: Mapping[str, nn.Parameter],
        export: Callable[[], object],
    ) -> Result:
        """Train, then call ``export`` on rank 0 while the weights are whole."""
        whole = self.model.dit if config.engine.zero_stage == 3 else None
        step = PreferenceStep(self.model, gate, reference, trainable, config.dpo, whole)
        engine = make_engine(config.engine, step, self.run.path)
        try:
            held_out = HeldOut(step, self.unseen, config.loop, config.engine.micro_batch_size)
            result = run_loop(
                self.run, engine, held_out, self.data, config, self.model.device, name,
                self.progress,
            )  # fmt: skip
            with engine.gathered():
                if engine.rank == 0:
                    export()
        finally:
            engine.close()
        return {"pairs": len(self.data), "base": self.base, **result}


def _load(
    run: RunDir,
    config: StageConfig,
    pairs: tuple[list[Preference], list[Preference]],
    model: TalkingModel | None,
    progress: Progress,
) -> _Stage:
    """Load the base if needed, and encode the pairs."""
    model = _prepare(model, config)
    data, unseen = _encode(pairs, config, run.path, model, progress)
    return _Stage(run, model, model_hash(model), data, unseen, progress)


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
        ``clips`` and ``conditions`` in the cache, and its ``folder``.
    """
    pairs = [pair for store in STORES for pair in read_pairs(config.dataset, store)]
    clips = unique_clips(pairs)
    model = _prepare(model, config)
    cache = fill_cache(clips, cache_dir, model, config.encoding, progress)
    return {
        "clips": len(cache.clips),
        "conditions": len(cache.conditions),
        "folder": str(cache.path),
    }


def _norm_b(adapter: Path) -> float:
    """Return the norm of all up-projections in the saved file: 0 means nothing was learned."""
    tensors = read_adapter(adapter)[1]
    return sum(float(t.norm() ** 2) for n, t in tensors.items() if ".lora_B." in n) ** 0.5


def _read(config: StageConfig, store: Store) -> tuple[list[Preference], list[Preference]]:
    """Return (training, held-out) pairs of a store, refusing too few before anything loads."""
    pairs = read_pairs(config.dataset, store)
    train, held_out = split_held_out(pairs, config.loop.held_out, config.loop.seed)
    require_pairs(train, store, config.dataset, least=config.engine.micro_batch_size)
    return train, held_out[: config.loop.eval_pairs]


def _prepare(model: TalkingModel | None, config: StageConfig) -> TalkingModel:
    """Return the base, loaded if needed, without experts and frozen."""
    if model is None:
        model = load_talking_model(config.model, local_device(config.device))
    remove_experts(model.dit)
    model.dit.requires_grad_(False)
    model.dit.eval()
    if config.gradient_checkpointing:
        model.dit.enable_gradient_checkpointing()
    else:
        model.dit.disable_gradient_checkpointing()
    return model


def _encode(
    pairs: tuple[list[Preference], list[Preference]],
    config: StageConfig,
    output: Path,
    model: TalkingModel,
    progress: Progress,
) -> tuple[PairData, PairData]:
    train, held_out = pairs
    clips = unique_clips([*train, *held_out])
    with rank_zero_first(config.engine):
        folder = config.cache_dir(output)
        cache: Cache = fill_cache(clips, folder, model, config.encoding, progress)
    data = PairData(train, cache, config.mask).without_small_masks()
    require_pairs(data.pairs, "masked", config.dataset, least=config.engine.micro_batch_size)
    return data, PairData(held_out, cache, config.mask).without_small_masks()


def _constant(model: TalkingModel, weights: tuple[float, ...]) -> GateFunction:
    def gate(sigma: Tensor) -> Tensor:
        return constant_gate(len(sigma), model.num_layers, weights).to(sigma.device)

    return gate


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
    width = features_dim(model.dit, config.gate.input)
    gate = FusionGate(model.num_layers, num_experts, width, config.gate.bias_init).to(model.device)
    gate.bias.requires_grad_(config.gate.train_bias)
    if config.reference == "base":
        return gate, base_gate
    initial = copy.deepcopy(gate).requires_grad_(False)
    return gate, _gate_function(config, model, initial)
