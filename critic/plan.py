"""What a training would do, counted without weights."""

from pathlib import Path
from typing import Any

import torch

from ft2.critic.adapter import add_lora, count_trainable
from ft2.critic.config import CriticConfig
from ft2.critic.training_data import read_data, remarks_on
from ft2.qwen.thinker import meta_thinker


def plan_training(config: CriticConfig, output: Path) -> dict[str, Any]:
    """Return clips, parameters, memory and the command of a training; nothing is loaded.

    The weights may be elsewhere, so that a training can be planned on any machine; ratings that are
    not there yet stand under ``missing``.

    Raises:
        UsageError: The objective cannot learn from the ratings.
    """
    there = Path(config.ratings).is_file()
    data = read_data(config) if there else None
    thinker = meta_thinker(config.model)
    total = sum(p.numel() for p in thinker.parameters())
    with torch.device("meta"):
        trained = count_trainable(add_lora(thinker, config.lora))
    engine = config.engine
    wide = engine.precision == "bf16" and config.device != "cpu"
    size = 2 if wide else 4
    weights = config.model.weights
    here = weights == "nano" or Path(weights).is_dir()
    plan: dict[str, Any] = {
        "output": str(output),
        "ratings": config.ratings,
        "train_ratings": data.num_train if data else "unknown",
        "dev_ratings": len(data.dev_pairs) or len(data.dev) if data else "unknown",
        "weights": weights if here else f"{weights} (not on this machine)",
        "parameters": total,
        "trainable_parameters": trained,
        "tokens_per_clip": config.model.num_video_tokens + config.model.num_audio_tokens,
        "clips_seen_per_process": config.steps
        * engine.micro_batch_size
        * engine.accumulation_steps,
        "weights_gb": round(total * size / 1e9, 2),
        "adapter_and_optimizer_gb": round(trained * 16 / 1e9, 3),
        "device": config.device,
        "engine": engine.kind,
        "command": "torchrun --nproc-per-node N -m ft2 critic train ..."
        if engine.kind == "deepspeed"
        else "ft2 critic train ...",
    }
    remarks = remarks_on(config)
    plan |= {"remarks": remarks} if remarks else {}
    lost = f"there is no ratings file {config.ratings} (ft2 critic split writes one)"
    return plan | {"missing": {} if there else {"ratings": lost}}
