"""A small world without models: conditions on disk, a generator and a scorer made of hashes."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from ft2.config import ClipFormat
from ft2.media import read_video, write_png, write_wav
from ft2.media.video import encode_mp4
from ft2.pairs import Condition, Generated, Scores

CLIP = ClipFormat(width=32, height=32, num_frames=5, fps=12.5, sample_rate=16000)


def rng_of(text: str) -> np.random.Generator:
    return np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16))


@cache
def coloured_clip(name: str, num_frames: int) -> bytes:
    """An mp4 of one colour with a tone; the name decides the colour."""
    colour = rng_of(name).integers(0, 255, (1, 1, 1, 3))
    frames = np.broadcast_to(colour, (num_frames, 32, 32, 3)).astype(np.uint8)
    audio = np.sin(np.arange(CLIP.num_samples) / 20).astype(np.float32) * 0.1
    return encode_mp4(frames, CLIP.fps, audio)


class HashGenerator:
    """Writes a coloured clip with a tone for each condition and seed."""

    def __init__(self, limit: int | None = None, broken: Sequence[tuple[str, int]] = ()) -> None:
        self.calls = 0
        self.limit = limit
        self.broken = set(broken)

    @property
    def name(self) -> str:
        return "hash-generator"

    def generate(
        self, conditions: Sequence[Condition], seeds: Sequence[int], output_dir: Path
    ) -> Iterator[Generated]:
        for condition in conditions:
            for seed in seeds:
                if self.limit is not None and self.calls >= self.limit:
                    raise KeyboardInterrupt
                self.calls += 1
                path = output_dir / condition.condition_id / f"{seed:04d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                short = (condition.condition_id, seed) in self.broken
                path.write_bytes(
                    coloured_clip(f"{condition.condition_id}/{seed}", 3 if short else 5)
                )
                yield Generated(condition.condition_id, seed, path)


class ColourScorer:
    """Reads the decoded clip's mean colour as the three scores."""

    def __init__(self) -> None:
        self.calls = 0

    @property
    def name(self) -> str:
        return "colour-scorer"

    def score(self, paths: Sequence[Path]) -> list[Scores]:
        self.calls += len(paths)
        means = [read_video(path).frames.mean(axis=(0, 1, 2)) / 255 for path in paths]
        return [Scores(*map(float, mean)) for mean in means]


def write_conditions(folder: Path, splits: Sequence[str]) -> Path:
    """Write one condition for each entry of `splits`, each its own face and voice."""
    lines = []
    for index, split in enumerate(splits):
        image = rng_of(f"face{index}").integers(0, 255, (32, 32, 3)).astype(np.uint8)
        write_png(folder / f"face{index}.png", image)
        write_wav(folder / f"voice{index}.wav", np.zeros(CLIP.num_samples, np.float32))
        lines.append(
            {
                "condition_id": f"c{index}",
                "identity_id": f"face{index}",
                "audio_id": f"voice{index}",
                "portrait": f"face{index}.png",
                "audio": f"voice{index}.wav",
                "prompt": f"person {index} talks",
                "split": split,
            }
        )
    path = folder / "conditions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
