"""A tiny talking model of the real classes, and pairs drawn from its own samples."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from ft2.config import ClipFormat, EngineConfig
from ft2.flow import euler_sample, shifted_sigmas
from ft2.pairs import ClipRecord, Preference, Scores
from ft2.tlpo.cache import Cache, condition_key, fingerprint
from ft2.tlpo.config import (
    ATTENTION_TARGETS,
    AUDIO_TARGETS,
    FFN_TARGETS,
    CacheConfig,
    DpoConfig,
    ExpertConfig,
    FusionConfig,
    GateConfig,
    LoopConfig,
    LoraConfig,
    SigmaConfig,
)
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel
from ft2.wan.own import build_model
from ft2.wan.spec import (
    Architecture,
    AudioSpec,
    DitSpec,
    ImageSpec,
    LatentSpec,
    TextSpec,
    WanSpec,
)

TARGETS = (*ATTENTION_TARGETS, *FFN_TARGETS, *AUDIO_TARGETS)
CLIP = ClipFormat(width=32, height=32, num_frames=5, fps=12.5)
SHAPE = (16, 2, 4, 4)
ARCHITECTURE = Architecture(
    name="toy",
    clip=CLIP,
    dit=DitSpec(
        num_attention_heads=2, attention_head_dim=12, ffn_dim=48, num_layers=2, freq_dim=32,
        audio_dim=14,
    ),
    text=TextSpec(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=300,
                  max_tokens=8),
    image=ImageSpec(hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                    num_attention_heads=2, image_size=32, patch_size=16),
    audio=AudioSpec(kind="log_mel", features=28, num_mels=8, tower_dim=0),
    latent=LatentSpec(codec="motion", gaussian_skip=True),
)  # fmt: skip


def tokenize(prompt: str) -> SimpleNamespace:
    return SimpleNamespace(input_ids=[1 + (ord(c) % 250) for c in prompt[:8]])


def toy_model(seed: int = 0, scale: float = 0.15) -> TalkingModel:
    """A talking model with random weights whose samples are close to standard normal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(WanSpec(architecture=ARCHITECTURE), ARCHITECTURE, tokenize)
        with torch.no_grad():
            for name, p in model.dit.named_parameters():
                if not name.endswith("norm.weight"):
                    p.copy_(torch.randn_like(p) * scale)
            model.dit.proj_out.weight.mul_(1.0)
            for name in ("image_encode", "residual_encode"):
                buffer = getattr(model.codec, name)
                buffer.copy_(torch.randn_like(buffer) / buffer.shape[1] ** 0.5)
    for module in (model.dit, model.codec, model.text, model.image):
        module.eval().requires_grad_(False)
    return model


def toy_conditioning(count: int, seed: int = 0) -> Conditioning:
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(count, 4, *SHAPE[1:])
    mask[:, :, 0] = 1
    return Conditioning(
        torch.cat((mask, torch.randn(count, *SHAPE, generator=g)), 1),
        torch.randn(count, 8, 16, generator=g),
        torch.randn(count, 5, 16, generator=g),
        torch.randn(count, 2, 3, 28, generator=g),
        torch.ones(count, 2, 3, dtype=torch.bool),
        torch.zeros(count, 32, 32, 3, dtype=torch.uint8),
    )


@torch.no_grad()
def sample(model: TalkingModel, cond: Conditioning, noise: Tensor, gate=None) -> Tensor:
    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return model.velocity(x, sigma, cond, None if gate is None else gate(sigma))

    return euler_sample(velocity, noise, shifted_sigmas(8, 1.0))


def merit(latents: Tensor, channel: int) -> Tensor:
    """What a toy critic likes: one channel's mean, [B]."""
    return latents[:, channel].flatten(1).mean(1)


def record(clip_id: str, condition: int, score: float = 0.5) -> ClipRecord:
    media = pa.py_buffer(f"media {condition}".encode())
    return ClipRecord(
        clip_id=clip_id, condition_id=f"c{condition}", identity_id="i", audio_id="a",
        reference_id="r", prompt=f"p{condition}", split="train", model="toy", seed=0, width=32,
        height=32, fps=12.5, num_frames=5, scores=Scores(score, score, score), video=media,
        audio=media, reference=media,
    )  # fmt: skip


@dataclass
class World:
    """A model and a cache that already holds its scored samples."""

    model: TalkingModel
    cache_dir: Path
    pairs: dict[str, list[Preference]]


def toy_world(folder: Path, num_conditions: int = 48, num_seeds: int = 6) -> World:
    """Sample the base, judge channel 0 / 1 / 2 as motion / lip / quality, pair best and worst."""
    model = toy_model()
    cond = toy_conditioning(num_conditions)
    g = torch.Generator().manual_seed(5)
    total = num_conditions * num_seeds
    latents = sample(model, cond.repeat(num_seeds), torch.randn(total, *SHAPE, generator=g))
    records = [record(f"clip{i}", i // num_seeds) for i in range(total)]
    cache = Cache(folder / fingerprint(model, CacheConfig(mask="box")))
    keys = [condition_key(records[i * num_seeds]) for i in range(num_conditions)]
    cache.add("conditions", keys, cond.state())
    lips = torch.zeros(total, *SHAPE[1:])
    lips[:, :, 2:, 1:3] = 1
    cache.add("clips", [r.clip_id for r in records], {"latents": latents, "lip_mask": lips})
    pairs: dict[str, list[Preference]] = {"motion": [], "lip": [], "quality": [], "fusion": []}
    for channel, name in enumerate(("motion", "lip", "quality", "fusion")):
        score = (
            sum(merit(latents, c) for c in range(3))
            if name == "fusion"
            else merit(latents, channel)
        )
        for i in range(num_conditions):
            group = list(range(i * num_seeds, (i + 1) * num_seeds))
            group.sort(key=lambda n: -float(score[n]))
            for a, b in ((0, -1), (1, -2)):
                ids = records[group[a]], records[group[b]]
                pairs[name].append(Preference(f"{name}{i}{a}{b}", name, *ids, 0.5))
    return World(model, folder, pairs)


def expert_config(
    world: World, dimension: str = "motion", steps: int = 25, **changes
) -> ExpertConfig:
    values = {
        "dimension": dimension,
        "dataset": "toy",
        "cache": world.cache_dir,
        "encoding": CacheConfig(mask="box"),
        "lora": LoraConfig(rank=4, alpha=4, targets=TARGETS),
        "dpo": DpoConfig(beta=20),
        "sigma": SigmaConfig(draws=2),
        "loop": LoopConfig(num_steps=steps, held_out=0.25, eval_every=10, checkpoint_every=10,
                           eval_pairs=8, eval_sigmas=(0.3, 0.6, 0.9)),
        "engine": EngineConfig(learning_rate=1e-2, micro_batch_size=4, warmup_steps=3),
    }  # fmt: skip
    return ExpertConfig(**{**values, **changes})


def fusion_config(world: World, experts: dict[str, Path], **changes) -> FusionConfig:
    base = expert_config(world, steps=15).model_dump(exclude={"stage", "dimension", "lora"})
    base |= {"experts": experts, "gate": GateConfig(bias_init=1 / 3), "dpo": DpoConfig(beta=60)}
    return FusionConfig(**{**base, **changes})


def metrics(path: Path) -> list[dict[str, object]]:
    lines = [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "perf_")
    return [{k: v for k, v in line.items() if not k.startswith(times)} for line in lines]


def channel_gain(world: World, gate, channels: Sequence[int], conditions: int = 16) -> list[float]:
    """Mean gain of each channel's merit over the base, same noise and unseen conditions."""
    cond = toy_conditioning(conditions, seed=99)
    noise = torch.randn(conditions, *SHAPE, generator=torch.Generator().manual_seed(7))
    base, policy = sample(world.model, cond, noise), sample(world.model, cond, noise, gate)
    return [float((merit(policy, c) - merit(base, c)).mean()) for c in channels]


PRELUDE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import tlpo_toys as toys
import ft2.tlpo.views as views
from ft2.config import EngineConfig
from ft2.engine import shutdown

out = Path(sys.argv[2])
world = toys.toy_world(out / "cache", num_conditions=8)
views.read_pairs = lambda _, store: world.pairs[store]

def engine_of(config, **changes):
    return EngineConfig(**{**config.engine.model_dump(), **changes})
"""


def report_of(script: str, folder: Path) -> dict[str, Any]:
    """Run a script after PRELUDE in a process of its own; return the ``report`` it leaves."""
    whole = f"{PRELUDE}\n{script}\nshutdown()\nprint(json.dumps(report))\n"
    done = subprocess.run(
        [sys.executable, "-c", whole, str(Path(__file__).parent), str(folder)],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found
