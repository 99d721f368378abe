"""What a stage would do: counts, memory and work, without loading any weights."""

from pathlib import Path

from ft2.errors import UsageError
from ft2.lora import fused_linears, install_experts, read_adapter
from ft2.pairs import DIMENSIONS, STORES, read_pairs
from ft2.report.charts import significant
from ft2.tlpo.config import ExpertConfig, FusionConfig, LoraConfig, StageConfig
from ft2.tlpo.data import check_dataset
from ft2.tlpo.experts import ordered
from ft2.tlpo.gate import make_gate
from ft2.tlpo.memory import GIB, memory_gib
from ft2.tlpo.views import read_view
from ft2.tlpo.work import Held, pair_flops
from ft2.wan.places import read_architecture, weights_dir
from ft2.wan.spec import Architecture
from ft2.wan.weights import meta_dit

Plan = dict[str, object]


def plan_stage(config: ExpertConfig | FusionConfig) -> Plan:
    """Return the plan of a stage; what is missing yet is listed, not an error.

    Returns:
        ``stage``, ``trainable_parameters``, ``adapted_linears``, ``base_parameters``, ``pairs``,
        ``memory_gib`` by part (estimates; one process, and each ZeRO stage on eight GPUs),
        ``tflop_per_pair`` and ``tflop_per_step``, seconds and hours at stated rates, ``launch`` and
        ``missing``: inputs that must exist before the run, config key to what is wrong.

    Raises:
        UsageError: An input is there but wrong: too few pairs, targets that match nothing.
    """
    missing: dict[str, str] = {}
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
        held = Held.of(
            (n, x.lora_A.numel() + x.lora_B.numel(), x.lora_A.shape[0])
            for n, x in fused_linears(dit)
        )
        trainable = held.total
    else:
        if config.gate.per_linear:
            install_experts(dit, LoraConfig().targets, 1, 1, 1)
        gate = make_gate(config.gate, dit, len(config.experts) or len(DIMENSIONS))
        trainable = sum(p.numel() for p in gate.parameters())
        held = _expert_sizes(config, missing)
    plan["trainable_parameters"] = trainable
    pairs = _pairs(config, missing)
    plan["pairs"] = pairs
    plan |= _work(config, architecture, base, trainable, held, pairs)
    plan["launch"] = launch_line(config)
    return plan | {"missing": missing}


def _architecture(config: StageConfig, missing: dict[str, str]) -> Architecture | None:
    missing |= missing_weights(config)
    if missing and config.model.architecture is None:
        return None
    return read_architecture(config.model)


def missing_weights(config: StageConfig) -> dict[str, str]:
    """Return what is wrong with ``model.weights``, by that key, or nothing."""
    try:
        weights_dir(config.model)
    except UsageError as error:
        return {"model.weights": error.message}
    return {}


def _pairs(config: ExpertConfig | FusionConfig, missing: dict[str, str]) -> dict[str, int] | None:
    try:
        check_dataset(config.dataset)
    except UsageError as error:
        missing["dataset"] = f"{error.message} (ft2 nsq build)"
        return None
    train, held_out = read_view(config, config.view)
    return {"training": len(train.pairs), "held_out": len(held_out)}


def _expert_sizes(config: FusionConfig, missing: dict[str, str]) -> Held:
    """Return the parameters of the experts that exist."""
    sizes: list[tuple[str, int, int]] = []
    if not config.experts:
        missing["experts"] = "no experts: set experts.motion=DIR and so on"
    for name, path in config.experts.items():
        try:
            folder = ordered({name: path})[name]
        except UsageError as error:
            missing[f"experts.{name}"] = f"{name} expert: {error.message}"
            continue
        sizes += [
            (key, t.numel(), t.shape[0] if "lora_A" in key else 0)
            for key, t in read_adapter(folder)[1].items()
        ]
    return Held.of(sizes)


RATES = {"H200 at 400 TFLOP/s": 400.0, "A100 at 180 TFLOP/s": 180.0, "CPU core at 0.05": 0.05}
"""Rates, in TFLOP/s, at which the plan states seconds; none was measured for this plan."""

GPUS = 8
"""GPUs for which the plan states the memory of each ZeRO stage."""


def _work(
    config: ExpertConfig | FusionConfig,
    architecture: Architecture,
    base: int,
    trainable: int,
    held: Held,
    pairs: dict[str, int] | None,
) -> Plan:
    """Return steps, memory and work of the training."""
    engine = config.engine
    size = engine.micro_batch_size * engine.accumulation_steps
    pair = pair_flops(config, architecture, held) / 1e12
    sizes = (config, architecture, base, trainable, held)
    one = memory_gib(*sizes, zero_stage=engine.zero_stage, gpus=1)
    shared = {stage: memory_gib(*sizes, zero_stage=stage, gpus=GPUS) for stage in (1, 2, 3)}
    count = pairs["training"] if pairs else 1000
    return {
        "steps": config.loop.num_steps,
        "pairs_per_step_and_process": size,
        "memory_gib": {name: significant(value) for name, value in one.items()},
        "memory_gib_total": significant(sum(one.values())),
        f"memory_gib_on_{GPUS}_gpus": {
            f"zero {stage}": {n: significant(v) for n, v in {**m, "total": sum(m.values())}.items()}
            for stage, m in shared.items()
        },
        "tflop_per_pair": significant(pair),
        "tflop_per_step": significant(size * pair),
        "seconds_per_pair": {name: significant(pair / rate) for name, rate in RATES.items()},
        "hours_of_one_device_for_one_pass": {
            "pairs": count,
            **{name: significant(count * pair / rate / 3600) for name, rate in RATES.items()},
        },
        "checkpoint_gib": significant(trainable * 12 / GIB),
    }


def launch_line(config: StageConfig) -> str:
    """Return the command prefix for several processes."""
    if config.engine.kind == "torch":
        return "one process: ft2 tlpo train ..."
    return "torchrun --nproc-per-node GPUS -m ft2 tlpo train ..."


def stores_of(dataset: Path) -> dict[str, int]:
    """Return the number of training pairs in each store of a dataset."""
    return {store: len(read_pairs(dataset, store)) for store in STORES}
