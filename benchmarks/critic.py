"""What one packed forward for three questions saves, against separate forwards and `generate`.

For the shipped nano critic and random clips, in one run on one thread, in CPU seconds a clip and
in the most megabytes of tensors held at a time, weights aside:

- generate: three `generate()` calls of the class, one a question, each from pixels and samples,
  with one new token (a longer answer would cost more);
- separate: towers once, then three forwards of the language model;
- packed: towers once, then one forward with the block mask;
- streams: packed, with a stream for each question.

    python benchmarks/critic.py [--clips 8] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import header, peak_mb

from ft2.critic.config import QUESTIONS
from ft2.critic.tokens import Critic, encode_views
from ft2.qwen import packed
from ft2.qwen.spec import QwenSpec, StreamSpec
from ft2.qwen.streams import layout_of
from ft2.qwen.thinker import load_thinker
from ft2.qwen.view import ClipView, make_view

RESULT = Path(__file__).parent / "results" / "critic.json"
STREAMS = (
    StreamSpec(answers=("quality",), every=6),
    StreamSpec(answers=("motion",), width=32, height=32),
    StreamSpec(answers=("lip",), crop="mouth", width=64, height=32, audio=True),
)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = QwenSpec()
    split = spec.model_copy(update={"streams": STREAMS})
    critic = Critic(*load_thinker(spec), spec)
    by_stream = Critic(critic.thinker, critic.processor, split)
    clips = [random_clip(number, spec) for number in range(options.clips)]
    streamed = [make_view(np.ascontiguousarray(c.pixels[:21, :64]), c.audio, split) for c in clips]
    ways: dict[str, Callable[[], list[torch.Tensor]]] = {
        "generate": lambda: generate_each(critic, clips),
        "separate": lambda: separate(critic, clips),
        "packed": lambda: pack(critic, clips),
        "streams": lambda: pack(by_stream, streamed),
    }
    seconds = {name: [] for name in ways}
    found = {}
    for turn in range(options.rounds + 1):  # the first warms up
        for name, way in ways.items():
            began = time.process_time()
            found[name] = way()
            if turn:
                seconds[name].append((time.process_time() - began) / options.clips)
    report = summarise(seconds, found)
    report["peak_mb_of_tensors"] = {name: round(peak_mb(way), 2) for name, way in ways.items()}
    report["setting"] = vars(options) | {"tokens_single": spec.num_video_tokens, "threads": 1}
    report["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    report["machine"] = header()
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def random_clip(seed: int, spec: QwenSpec) -> ClipView:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (spec.clip.num_frames, 64, 64, 3), dtype=np.uint8)
    audio = 0.1 * rng.standard_normal(spec.clip.num_samples)
    return make_view(frames, audio.astype(np.float32), spec)


@torch.no_grad()
def generate_each(critic: Critic, clips: list[ClipView]) -> list[torch.Tensor]:
    rows = []
    for clip in clips:
        logits = []
        for question in QUESTIONS.values():
            text = packed.PREFIX + packed.TAIL.format(question=question)
            data = packed.process(critic.processor, critic.spec, text, clip.pixels, clip.audio)
            made = critic.thinker.generate(
                **data, use_audio_in_video=True, max_new_tokens=1, do_sample=False,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
            logits.append(made.logits[0][0])
        rows.append(torch.stack(logits))
    return rows


@torch.no_grad()
def separate(critic: Critic, clips: list[ClipView]) -> list[torch.Tensor]:
    layouts = [
        layout_of(critic.thinker, critic.processor, critic.spec, {name: question})
        for name, question in QUESTIONS.items()
    ]
    rows = []
    for clip in clips:
        tokens = encode_views(critic, [clip])
        rows.append(
            torch.cat([packed.answer_logits(critic.thinker, one, *tokens)[0] for one in layouts])
        )
    return rows


@torch.no_grad()
def pack(critic: Critic, clips: list[ClipView]) -> list[torch.Tensor]:
    layout = layout_of(critic.thinker, critic.processor, critic.spec, QUESTIONS)
    return [
        packed.answer_logits(critic.thinker, layout, *encode_views(critic, [c]))[0] for c in clips
    ]


def summarise(seconds: dict[str, list[float]], found: dict[str, Any]) -> dict[str, Any]:
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    gaps = {
        f"largest_logit_difference_{name}": max(
            float((a - b).abs().max()) for a, b in zip(found["packed"], found[name], strict=True)
        )
        for name in ("generate", "separate")
    }
    return {
        "cpu_ms_a_clip": {name: round(1000 * value, 2) for name, value in median.items()},
        "clips_a_cpu_second": {name: round(1 / value, 1) for name, value in median.items()},
        "packed_is_faster_than_generate": round(median["generate"] / median["packed"], 2),
        "packed_is_faster_than_separate": round(median["separate"] / median["packed"], 2),
        **gaps,
    }


if __name__ == "__main__":
    main()
