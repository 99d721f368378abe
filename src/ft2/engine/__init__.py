"""One optimiser step, in plain PyTorch or under DeepSpeed, from one typed config.

Both engines run the same loop: ``loss = engine(batch)`` and ``engine.backward(loss)`` for each of
``accumulation_steps`` micro-batches, then ``engine.step()``. Both hold a ``torch.optim.AdamW`` over
the trainable parameters and the same warm-up, so that on one process they give equal weights.
"""

from pathlib import Path

from torch import nn

from ft2.config import EngineConfig
from ft2.engine.base import Engine, StepInfo, autocast, check_resumable, env_int, learning_rate_at
from ft2.engine.frozen import FrozenWeights
from ft2.engine.processes import local_device, mean_over_ranks, rank_zero_first, shutdown
from ft2.engine.single import TorchEngine
from ft2.engine.zero import DeepSpeedEngine, deepspeed_config
from ft2.errors import UsageError
from ft2.runs import write_json

__all__ = [
    "DeepSpeedEngine",
    "Engine",
    "FrozenWeights",
    "StepInfo",
    "TorchEngine",
    "autocast",
    "check_resumable",
    "deepspeed_config",
    "learning_rate_at",
    "local_device",
    "make_engine",
    "mean_over_ranks",
    "rank_zero_first",
    "shutdown",
]


def make_engine(config: EngineConfig, module: nn.Module, run_dir: Path | None = None) -> Engine:
    """Return the engine that the config asks for.

    Args:
        config: Optimiser and engine settings.
        module: Its forward returns the loss; its parameters with ``requires_grad`` are trained.
        run_dir: Where ``deepspeed.json`` goes (DeepSpeed only).

    Raises:
        UsageError: Nothing is trainable, or several processes without DeepSpeed.
        MissingExtra: DeepSpeed is not installed.
    """
    if not any(p.requires_grad for p in module.parameters()):
        raise UsageError("nothing to train: no parameter requires a gradient")
    if config.kind == "deepspeed":
        if run_dir is not None and env_int("RANK", 0) == 0:
            write_json(run_dir / "deepspeed.json", deepspeed_config(config))
        return DeepSpeedEngine(config, module)
    return TorchEngine(config, module)
