"""What a stage would do: counts, memory and work, without loading any weights."""

from pathlib import Path

from ft2.errors import UsageError
from ft2.lora import expert_parameters, install_experts, read_adapter
from ft2.pairs import DIMENSIONS, STORES, read_pairs
from ft2.tlpo.config import ExpertConfig, FusionConfig, LoraConfig, StageConfig
from ft2.tlpo.experts import ordered
from ft2.tlpo.gate import make_gate
from ft2.tlpo.stage import read_view
from ft2.wan.spec import Architecture
from ft2.wan.weights import meta_dit, read_architecture, weights_dir

GIB = 2**30
Plan = dict[str, object]


def plan_stage(config: ExpertConfig | FusionConfig) -> Plan:
    """Return the plan of a stage; what is missing yet is listed, not an error.

    Returns:
        ``stage``, ``trainable_parameters``, ``adapted_linears``, ``base_parameters``, ``pairs``,
        ``memory_gib`` by part (estimates), ``tflop_per_step`` (estimate), ``launch`` and
        ``missing``: inputs that must exist before the run.

    Raises:
        UsageError: An input is there but wrong: too few pairs, targets that match nothing.
    """
    missing: list[str] = []
    architecture = _architecture(config, missing)
    if architecture is None:
        return {"stage": config.stage, "missing": missing}
    dit = meta_dit(config.model.model_copy(update={"architecture": architecture}))
    base = sum(p.numel() for p in dit.parameters())
    plan: Plan = {"stage": config.stage, "model": architecture.name, "base_parameters": base}
    if isinstance(config, ExpertConfig):
        lora = config.lora
        plan["dimension"] = config.dimension
        plan["adapted_linears"] = install_experts(dit, lora.targets, 1, lora.rank, lora.alpha)
        trainable = held = sum(p.numel() for p in expert_parameters(dit))
    else:
        if config.gate.per_linear:
            install_experts(dit, LoraConfig().targets, 1, 1, 1)
        gate = make_gate(config.gate, dit, len(config.experts) or len(DIMENSIONS))
        trainable = sum(p.numel() for p in gate.parameters())
        held = _expert_sizes(config, missing)
    plan["trainable_parameters"] = trainable
    plan["pairs"] = _pairs(config, missing)
    plan |= _work(config, architecture, base, trainable, held)
    plan["launch"] = launch_line(config)
    return plan | {"missing": missing}


def _architecture(config: StageConfig, missing: list[str]) -> Architecture | None:
    try:
        weights_dir(config.model)
    except UsageError as error:
        missing.append(error.message)
        if config.model.architecture is None:
            return None
    return read_architecture(config.model)


def _pairs(config: ExpertConfig | FusionConfig, missing: list[str]) -> dict[str, int] | None:
    if not config.dataset.is_dir():
        missing.append(f"the dataset {config.dataset} does not exist (ft2 nsq build)")
        return None
    train, held_out = read_view(config, config.view)
    return {"training": len(train.pairs), "held_out": len(held_out)}


def _expert_sizes(config: FusionConfig, missing: list[str]) -> int:
    """Return the parameters of the experts that exist."""
    total = 0
    if not config.experts:
        missing.append("no experts: set experts.motion=DIR and so on")
    for name, path in config.experts.items():
        try:
            folder = ordered({name: path})[name]
        except UsageError as error:
            missing.append(f"{name} expert: {error.message}")
            continue
        total += sum(t.numel() for t in read_adapter(folder)[1].values())
    return total


def num_tokens(architecture: Architecture) -> int:
    """Return the transformer's video tokens of one clip."""
    clip, patch = architecture.clip, architecture.dit.patch_size
    frames = clip.num_latent_frames // patch[0]
    return frames * (clip.height // 8 // patch[1]) * (clip.width // 8 // patch[2])


def forward_tflop(architecture: Architecture) -> float:
    """Return the TFLOP of one forward pass of one clip: linears and self-attention."""
    dit, tokens = architecture.dit, num_tokens(architecture)
    linears = 2 * (6 * dit.dim**2 + 2 * dit.dim * dit.ffn_dim) * tokens
    return dit.num_layers * (linears + 4 * tokens**2 * dit.dim) / 1e12


def _work(
    config: StageConfig, architecture: Architecture, base: int, trainable: int, held: int
) -> Plan:
    """Return steps, memory and work of the training."""
    engine, width = config.engine, 2 if config.model.precision == "bf16" else 4
    rows = 2 * engine.micro_batch_size * config.sigma.draws
    dit = architecture.dit
    kept = dit.num_layers if config.gradient_checkpointing else 20 * dit.num_layers
    memory = {
        "base": base * width / GIB,
        "experts": held * 4 / GIB,
        "gradients_and_adam": trainable * 12 / GIB,
        "activations": rows * num_tokens(architecture) * dit.dim * width * kept / GIB,
    }
    pairs_per_step = engine.micro_batch_size * engine.accumulation_steps
    passes = 2 * config.sigma.draws * (1 + 3 + (1 if config.gradient_checkpointing else 0))
    return {
        "steps": config.loop.num_steps,
        "pairs_per_step_and_process": pairs_per_step,
        "memory_gib": {name: round(value, 2) for name, value in memory.items()},
        "memory_gib_total": round(sum(memory.values()), 1),
        "tflop_per_step": round(pairs_per_step * passes * forward_tflop(architecture), 3),
        "checkpoint_gib": round(trainable * 12 / GIB, 3),
    }


def launch_line(config: StageConfig) -> str:
    """Return the command prefix for several processes."""
    if config.engine.kind == "torch":
        return "one process: ft2 tlpo train ..."
    return "torchrun --nproc-per-node GPUS -m ft2 tlpo train ..."


def stores_of(dataset: Path) -> dict[str, int]:
    """Return the number of training pairs in each store of a dataset."""
    return {store: len(read_pairs(dataset, store)) for store in STORES}
