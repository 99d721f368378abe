"""Memory of training from the cache, by the number of clips: names are held, features are not.

    python benchmarks/generator_cache.py [--clips 1500 15000 150000] [--steps 40]

Each number of clips has a process of its own, which opens clips and cache as training does, draws
batches, and reports its peak memory. The shards are synthetic: 64 clips in nano's format, written
once and linked under as many names as are needed (frames are sparse files of zeros), so 150,000
clips take little disk. What is read, row by row from shards picked at random, is as in training.
Writes benchmarks/results/generator_cache.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import torch

RESULTS = Path(__file__).parent / "results" / "generator_cache.json"
ROWS = 64
PROMPTS = 50


def write_data(folder: Path, count: int) -> None:
    """Write ``count`` clips: one data file under many names, whose "hashes" are remembered."""
    from safetensors.torch import save_file

    folder.mkdir()
    rows = [
        {"identity_id": f"p{i}", "audio_id": f"u{i}", "caption": f"somebody talks {i % PROMPTS}"}
        for i in range(ROWS)
    ]
    arrays = {
        "frames": torch.zeros(ROWS, 21, 64, 64, 3, dtype=torch.uint8),
        "audio": torch.zeros(ROWS, 26880, dtype=torch.int16),
        "motion": torch.rand(ROWS, 2),
    }
    first = folder / "shard-000000.safetensors"
    save_file(arrays, first, {"clips": json.dumps(rows)})
    stat, table = first.stat(), {}
    for number in range(-(-count // ROWS)):
        path = folder / f"shard-{number:06d}.safetensors"
        if number:
            os.link(first, path)
        table[str(path.absolute())] = [stat.st_size, stat.st_mtime_ns, f"{number:016x}"]
    (folder.parent / "data.json").write_text(json.dumps(table))


def write_cache(folder: Path, keys: list[str], captions: list[str], width: int) -> None:
    """Write encodings of nano's shapes: random, one file of clips under many names."""
    from ft2.generator.cache import EMPTY, prompt_key
    from ft2.runs import save_tensors
    from ft2.wan.store import Store

    folder.mkdir()
    prompts = sorted({EMPTY, *captions})
    Store(folder).add("prompts", [prompt_key(p) for p in prompts],
                      {"text": torch.rand(len(prompts), 24, 64).half()})  # fmt: skip
    shapes = {"x": (16, 6, 8, 8), "y": (20, 6, 8, 8), "image": (17, 64), "tokens": (42, width)}
    tensors = {name: torch.rand(ROWS, *shape).half() for name, shape in shapes.items()}
    first = folder / "clips-first.safetensors"
    save_tensors(first, tensors | {"lips": torch.rand(ROWS, 1, 8, 8)})
    for number, start in enumerate(range(0, len(keys), ROWS)):
        file = f"clips-{number:06d}.safetensors"
        os.link(first, folder / file)
        index = {"kind": "clips", "file": file, "keys": keys[start : start + ROWS]}
        (folder / f"clips-{number:06d}.json").write_text(json.dumps(index))


def draw(place: Path, steps: int) -> dict[str, float]:
    """Open data and cache as training does, draw batches, and return memory and times."""
    from ft2.config import load_config
    from ft2.generator.batches import draw_batch
    from ft2.generator.cache import Encoded
    from ft2.generator.config import TrainConfig
    from ft2.generator.data import read_clips
    from ft2.wan.places import read_architecture
    from ft2.wan.spec import WanSpec
    from ft2.wan.store import Store

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    clips = read_clips(place / "data", known=place / "data.json")
    if not (place / "cache").is_dir():
        width = read_architecture(WanSpec()).audio.features - 12
        write_cache(place / "cache", clips.keys, clips.captions, width)
        return {}
    data = Encoded(Store(place / "cache"), clips, 24)
    opened = time.perf_counter()
    config = load_config(TrainConfig, "nano/generator-frame", [])
    for step in range(steps):
        draw_batch(config, data, read_architecture(WanSpec()), step)
    drawn = time.perf_counter()
    shard = place / "cache" / "clips-first.safetensors"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "clips": len(clips),
        "imports_mib": round(before / 1024, 1),
        "peak_mib": round(peak / 1024, 1),
        "grown_mib": round((peak - before) / 1024, 1),
        "open_seconds": round(opened - began, 2),
        "batch_seconds": round((drawn - opened) / steps, 4),
        "encoded_gib": round(len(clips) / ROWS * shard.stat().st_size / 2**30, 2),
    }


def main() -> None:
    """Measure every number of clips in a process of its own; write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[1500, 15000, 150000])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.place is not None:
        print(json.dumps(draw(options.place, options.steps)))
        return
    rows = []
    for count in options.clips:
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder) / "data", count)
            command = [sys.executable, __file__, "--place", folder, "--steps", str(options.steps)]
            for _ in range(2):  # the first process writes the cache
                done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], file=sys.stderr)
    first, last = rows[0], rows[-1]
    per_clip = (last["grown_mib"] - first["grown_mib"]) * 2**20 / (last["clips"] - first["clips"])
    found = {
        "machine": machine.header(),
        "rows": rows,
        "bytes_of_memory_a_clip": round(per_clip),
        "encoded_bytes_a_clip": round(last["encoded_gib"] * 2**30 / last["clips"]),
        "peak_ratio": round(last["peak_mib"] / first["peak_mib"], 3),
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
