"""What base training changes step by step, and how a checkpoint of it is kept."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ft2.config import Config
from ft2.critic import heads as hd
from ft2.critic.arrays import Arrays, Sampler
from ft2.qwen import packed
from ft2.qwen.spec import QwenSpec
from ft2.runs import load_tensors, save_tensors

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

Stage = Literal["towers", "model"]


class PretrainConfig(Config):
    """Base training of a nano Thinker."""

    model: QwenSpec = QwenSpec()
    """Sizes."""
    data: str
    """Directory with ``train`` arrays, and ``dev`` arrays for held-out losses (optional)."""
    initial: str | None = None
    """A directory with ``thinker.safetensors`` to start from; None starts from random weights."""
    towers_steps: int = Field(1500, ge=0)
    """Steps of the tower stage."""
    model_steps: int = Field(4000, ge=0)
    """Steps of the stage that trains everything."""
    batch_size: int = Field(32, ge=1)
    """Clips a step."""
    learning_rate: float = Field(1.5e-3, gt=0)
    """Peak rate of AdamW; falls as a cosine to a twentieth in each stage."""
    warmup_steps: int = Field(100, ge=1)
    """Steps of linear warm-up at the start of each stage."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay."""
    swap: float = Field(0.25, ge=0, le=1)
    """Share of clips that get another clip's sound."""
    texture: float = Field(0.0, ge=0, le=1)
    """Share of clips that are mixed with a random convolution of themselves."""
    bf16: bool = True
    """Multiply in bfloat16; weights and optimiser stay float32."""
    checkpoint_steps: int = Field(250, ge=1)
    """Steps between checkpoints."""
    seed: int = Field(0, ge=0)
    """Seed of weights, order and variation."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.streams:
            raise ValueError("base training shows the composite: leave model.streams empty")
        return self


@dataclass
class State:
    """All that a step changes, and what it needs."""

    config: PretrainConfig
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration"
    processor: "Qwen2_5OmniProcessor"
    heads: hd.Heads
    scale: hd.Scale
    medians: Tensor
    sampler: Sampler
    optimizer: torch.optim.AdamW
    layouts: dict[tuple[int, ...], packed.Layout]


def stage_of(config: PretrainConfig, step: int) -> tuple[Stage, float]:
    """Return the stage of a step and its learning rate."""
    start, length = 0, config.towers_steps
    stage: Stage = "towers"
    if step >= config.towers_steps:
        stage, start, length = "model", config.towers_steps, config.model_steps
    place = step - start
    warm = min(1.0, (place + 1) / config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, place / max(length, 1))))
    return stage, config.learning_rate * warm * (0.05 + 0.95 * cosine)


def parameters(state: State) -> Iterator[torch.nn.Parameter]:
    """Yield all trained parameters."""
    yield from state.thinker.parameters()
    yield from state.heads.parameters()


def make_state(config: PretrainConfig, train: Arrays) -> State:
    """Return the state before the first step."""
    from ft2.qwen.thinker import new_thinker
    from ft2.qwen.tokens import build_processor

    processor = build_processor(config.model)
    thinker = new_thinker(config.model, processor, config.seed)
    if config.initial is not None:
        tensors, _ = load_tensors(Path(config.initial) / "thinker.safetensors")
        thinker.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    thinker.train().set_attn_implementation("eager")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        heads = hd.Heads(config.model, train.shown.shape[2], len(train.kind_names))
    sampler = Sampler(train, config.model, config.seed, config.swap, config.texture)
    some = sampler.plain(torch.arange(0, len(train), max(1, len(train) // 512)))
    trained = [*thinker.parameters(), *heads.parameters()]
    return State(
        config=config,
        thinker=thinker,
        processor=processor,
        heads=heads,
        scale=hd.fit_scale(train.shown),
        medians=hd.plain_answers(some).median(0).values,
        sampler=sampler,
        optimizer=torch.optim.AdamW(
            trained, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        ),
        layouts={},
    )


def save_state(state: State, directory: Path) -> None:
    """Write weights, heads and optimiser into a checkpoint directory."""
    moments = state.optimizer.state_dict()["state"]
    save_tensors(directory / "thinker.safetensors", dict(state.thinker.state_dict()))
    save_tensors(directory / "heads.safetensors", dict(state.heads.state_dict()))
    flat = {f"{i}.{key}": value for i, row in moments.items() for key, value in row.items()}
    save_tensors(directory / "optimizer.safetensors", flat)


def load_state(state: State, directory: Path) -> None:
    """Read back what `save_state` wrote."""
    state.thinker.load_state_dict(load_tensors(directory / "thinker.safetensors")[0])
    state.heads.load_state_dict(load_tensors(directory / "heads.safetensors")[0])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_tensors(directory / "optimizer.safetensors")[0].items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = tensor
    current = state.optimizer.state_dict()
    state.optimizer.load_state_dict({**current, "state": moments})
