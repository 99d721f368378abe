"""What do sampling's savings save, and what does long sound cost?

Four measurements, each a ratio within this one run, written to benchmarks/results/generate.json:

* passes: v = u + w(c - u) in two passes against the official three, at equal guidance scales;
* policy: experts merged into the weight just in time, and experts beside the base, against the base
  alone, at the full width of Wan 14B (5120, feed-forward 13824, three experts of rank 128), each
  part timed at a few tokens and put together for the tokens of 512 x 512 x 81;
* speed: nano windows a second (21 frames each, 12 steps, two passes) and peak memory;
* drift: colour, sharpness and the jump at the seams over 8 windows of long sound, with carried
  latents and colour matching, without matching, and as windows that know nothing of each other.

    python benchmarks/generate.py [--repeats 5] [--seeds 3] [--windows 8] [--plot FILE.svg]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ft2 import faces
from ft2.config import load_config
from ft2.faces import mouth_slice
from ft2.generator.config import GenerateConfig, GuidanceConfig, LongConfig
from ft2.generator.sample import generate_batch, guided_velocity, passes
from ft2.generator.windows import sample_long, window_audio, window_starts
from ft2.lora import FusedLinear, SharedGate, install_experts, remove_experts
from ft2.lora.merge import merged_weight
from ft2.puppet import identities, world
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel
from ft2.wan.weights import load_talking_model

RESULT = Path(__file__).parent / "results" / "generate.json"
FULL_TOKENS = 21504
TIMED_TOKENS = 512
LINEARS = {"attention, 8 a block": (5120, 5120, 8), "feed-forward, in": (5120, 13824, 1),
           "feed-forward, out": (13824, 5120, 1)}  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--plot", type=Path, help="also draw the drift")
    parser.add_argument(
        "--only",
        choices=("passes", "policy", "speed", "drift"),
        help="measure one of the four; the others stay as they were",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    config = load_config(GenerateConfig, "nano/generate")
    model = load_talking_model(config.model)
    report = json.loads(RESULT.read_text()) if options.only else {}
    measures: dict[str, Callable[[], Any]] = {
        "passes": lambda: measure_passes(model, options.repeats),
        "policy": lambda: measure_policy(options.repeats),
        "speed": lambda: measure_speed(model, config, options.repeats),
        "drift": lambda: measure_drift(model, config, options.seeds, options.windows),
    }
    for name, measure in measures.items():
        if options.only in (None, name):
            report[name] = measure()
    report |= {
        "setting": {"repeats": options.repeats, "seeds": options.seeds, "threads": 1},
        "machine": {"cpu": cpu(), "python": platform.python_version(), "cores": os.cpu_count(),
                    "torch": torch.__version__},
    }  # fmt: skip
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: report[k] for k in ("passes", "policy", "speed")}, indent=1))
    for name, rows in report["drift"].items():
        print(name, json.dumps(rows))
    if options.plot and options.only in (None, "drift"):
        plot(report["drift"], options.plot)


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the median processor time of a call, after one to warm up."""
    call()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return float(np.median(taken))


def condition(model: TalkingModel, number: int, sound: np.ndarray) -> Conditioning:
    """Return the conditions of a face that no training uses."""
    portrait = faces.align(identities.draw("test", number).image, model.clip.width)
    return model.encode_condition(portrait, window_audio(sound, 0, model.clip), "a person speaks")


def speech(clip_seconds: float) -> np.ndarray:
    """Return held-out speech of a length, sentence after sentence."""
    parts = [item.audio for item in world.utterances("test", 12)]
    return np.tile(np.concatenate(parts), 4)[: round(clip_seconds * 16000)].astype(np.float32)


@torch.no_grad()
def measure_passes(model: TalkingModel, repeats: int) -> dict[str, float]:
    """Compare collapsed guidance with the official three passes."""
    cond = condition(model, 0, speech(2))
    x = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    sigma, silent = torch.full((1,), 0.7), torch.zeros(1)
    negative = model.encode_prompts(["bad"])

    def official() -> Tensor:
        u = model.velocity(x, sigma, cond.with_text(negative), audio_scale=silent)
        n = model.velocity(x, sigma, cond, audio_scale=silent)
        c = model.velocity(x, sigma, cond)
        return u + 5.0 * (n - u) + 5.0 * (c - n)

    def collapsed() -> Tensor:
        weights = passes(GuidanceConfig(prompt=5.0, audio=5.0), 0.0)
        return guided_velocity(model, x, sigma, cond, negative, weights, 1.0, None)

    difference = (official() - collapsed()).abs().max() / official().abs().max()
    three, two = seconds(official, 3 * repeats), seconds(collapsed, 3 * repeats)
    return {
        "three_passes_ms": round(1000 * three, 2),
        "two_passes_ms": round(1000 * two, 2),
        "speed_up": round(three / two, 3),
        "largest_relative_difference": float(difference),
    }


@torch.no_grad()
def measure_policy(repeats: int) -> dict[str, Any]:
    """Time each part of a block's linears at full width and put them together."""
    own = torch.tensor([0.4, 0.3, 0.3])
    total = dict.fromkeys(("base", "merge", "beside"), 0.0)
    rows = {}
    for name, (width, out, count) in LINEARS.items():
        layer = FusedLinear(nn.Linear(width, out), 3, 128, 128.0).requires_grad_(False)
        x, scale = torch.randn(1, TIMED_TOKENS, width), layer.rank_scale(own[None], 1)[0]
        times = {
            "base": seconds(lambda x=x, m=layer: m(x), repeats) * FULL_TOKENS / TIMED_TOKENS,
            "merge": seconds(
                lambda m=layer, s=scale: merged_weight(m.weight, s, m.lora_A, m.lora_B), repeats
            ),
            "beside": seconds(lambda x=x, m=layer: m(x, own[None]), repeats)
            * FULL_TOKENS
            / TIMED_TOKENS,
        }
        rows[name] = {part: round(value, 3) for part, value in times.items()}
        total = {part: total[part] + count * times[part] for part in total}
    flops = counted()
    return {
        "seconds_of_one_linear_at_21504_tokens": rows,
        "timed": {
            "merged_over_base": round(1 + total["merge"] / total["base"], 4),
            "beside_over_base": round(total["beside"] / total["base"], 4),
            "note": "linears alone; attention, which experts do not touch, would lower both",
        },
        "counted": flops,
    }


def counted() -> dict[str, float]:
    """Count operations of a forward pass at 512 x 512 x 81, self-attention included."""
    tokens, rank, dim = FULL_TOKENS, 384, 5120
    linear = merge = beside = 0.0
    for width, out, count in LINEARS.values():
        linear += 2.0 * tokens * width * out * count
        merge += 2.0 * rank * width * out * count
        beside += 2.0 * tokens * rank * (width + out) * count
    whole = linear + 4.0 * tokens**2 * dim
    return {
        "merged_over_base": round(1 + merge / whole, 4),
        "beside_over_base": round(1 + beside / whole, 4),
        "merge_traffic_gb_a_pass": round(40 * 2 * 2 * sum(w * o * c for w, o, c in
                                                          LINEARS.values()) / 1e9, 1),
        "scratch_mb": round(2 * 5120 * 13824 / 1e6, 1),
    }  # fmt: skip


def measure_speed(model: TalkingModel, config: GenerateConfig, repeats: int) -> dict[str, float]:
    """Sample nano windows one by one and in a batch."""
    cond = condition(model, 0, speech(2))
    found: dict[str, float] = {}
    for size in (1, 16):
        given, keys = cond.repeat(size), [("a", seed) for seed in range(size)]
        settings = config.model_copy(update={"batch_size": size})
        taken = seconds(lambda g=given, k=keys, s=settings: generate_batch(model, g, k, s),
                        max(1, repeats // 2))  # fmt: skip
        found[f"windows_a_second_batch_{size}"] = round(size / taken, 3)
    found |= nano_policy(model, cond.repeat(16), repeats)
    found["peak_memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


@torch.no_grad()
def nano_policy(model: TalkingModel, cond: Conditioning, repeats: int) -> dict[str, float]:
    """Time a nano pass of 16 clips with three experts of rank 16, merged and beside the base."""
    targets = [f"{a}.to_{x}" for a in ("attn1", "attn2") for x in "qkv"]
    install_experts(model.dit, [*targets, "ffn.net.0.proj", "ffn.net.2"], 3, 16, 16.0)
    x = torch.randn(16, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    sigma, gate = torch.full((16,), 0.5), torch.full((16, model.num_layers, 3), 0.5)
    base = seconds(lambda: model.velocity(x, sigma, cond), repeats)
    merged = seconds(lambda: model.velocity(x, sigma, cond, SharedGate(gate[0])), repeats)
    beside = seconds(lambda: model.velocity(x, sigma, cond, gate), repeats)
    remove_experts(model.dit)
    return {
        "nano_policy_merged_over_base": round(merged / base, 3),
        "nano_policy_beside_over_base": round(beside / base, 3),
    }


def measure_drift(
    model: TalkingModel, config: GenerateConfig, seeds: int, windows: int
) -> dict[str, Any]:
    """Return per-window distances to the portrait and the jump at seams, for three ways."""
    clip, overlap = model.clip, config.long.overlap_frames
    frames = clip.num_frames + (windows - 1) * (clip.num_frames - overlap)
    sound = speech(frames / clip.fps)
    starts = window_starts(frames, clip, overlap)
    found: dict[str, dict[str, list[Any]]] = {}
    for seed in range(seeds):
        cond = condition(model, seed, sound)
        plain = config.model_copy(update={"long": LongConfig(colour_match=False)})
        videos = {
            "carried and matched": sample_long(model, cond, sound, frames, ("a", seed), config),
            "carried": sample_long(model, cond, sound, frames, ("a", seed), plain),
            "apart": apart(model, cond, sound, starts, seed, config, frames),
        }
        for name, video in videos.items():
            rows = found.setdefault(name, {"colour": [], "sharpness": [], "jump": []})
            for key, value in distances(video, cond, starts, clip.num_frames, overlap).items():
                rows[key].append(value)
    return {
        name: {key: np.round(np.mean(value, 0), 3).tolist() for key, value in rows.items()}
        for name, rows in found.items()
    }


def apart(
    model: TalkingModel,
    cond: Conditioning,
    sound: np.ndarray,
    starts: list[int],
    seed: int,
    config: GenerateConfig,
    frames: int,
) -> np.ndarray:
    """Return windows sampled without knowing of each other, cut at the same seams."""
    from dataclasses import replace

    overlap, parts = config.long.overlap_frames, []
    for number, start in enumerate(starts):
        heard, mask = model.encode_audio([window_audio(sound, start, model.clip)])
        given = replace(cond, audio=heard, audio_mask=mask)
        alone = config.model_copy(update={"batch_size": 1})
        clip = generate_batch(model, given, [(f"a#{number}", seed)], alone)[0]
        parts.append(clip[overlap:] if number else clip)
    return np.concatenate(parts)[:frames]


def distances(
    video: np.ndarray, cond: Conditioning, starts: list[int], length: int, overlap: int
) -> dict[str, list[float]]:
    """Return colour distance (levels) and sharpness ratio by window, jump ratio by seam."""
    portrait = cond.reference[0].numpy()
    outside = np.ones(portrait.shape[:2], bool)
    outside[mouth_slice(portrait.shape[0])] = False
    wanted = portrait[outside].mean(0)
    sharp = cv2.Laplacian(cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY), cv2.CV_64F).std()
    rows: dict[str, list[float]] = {"colour": [], "sharpness": [], "jump": []}
    moves = np.abs(np.diff(video.astype(float), axis=0)).mean((1, 2, 3))
    for number, start in enumerate(starts):
        part = video[start + (overlap if number else 0) : start + length]
        rows["colour"].append(float(np.abs(part[:, outside].mean((0, 1)) - wanted).mean()))
        grey = [cv2.Laplacian(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), cv2.CV_64F).std() for f in part]
        rows["sharpness"].append(float(np.mean(grey) / sharp))
        if number:
            rows["jump"].append(float(moves[start + overlap - 1] / np.median(moves)))
    return rows


def plot(drift: dict[str, Any], path: Path) -> None:
    """Draw colour and sharpness over windows, and the jumps at seams."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "ft2"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    titles = {
        "colour": "colour distance to the portrait (levels)",
        "sharpness": "sharpness (portrait = 1)",
        "jump": "jump at the seam (median frame step = 1)",
    }
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for name, rows in drift.items():
            first = 2 if key == "jump" else 1
            axis.plot(range(first, first + len(rows[key])), rows[key], marker="o", label=name)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("window")
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
