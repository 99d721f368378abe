"""What the notebooks share: puppet clips, a critic, a small set of preference pairs.

Clips and pairs are made once, in `runs/` beside the notebooks, and kept. The critic in `critic/` was
trained as `critic/provenance.json` says.
"""

import importlib.util
import json
import warnings
from pathlib import Path

from ft2.config import ClipFormat, load_config
from ft2.errors import MissingExtra

warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

RUNS = Path("runs")
CRITIC = Path("critic")
CLIP = ClipFormat()


def check_extras() -> None:
    """Say which extra is missing before anything is computed.

    Raises:
        MissingExtra: matplotlib, mediapipe or ttspico is not installed.
    """
    for package in ("matplotlib", "mediapipe", "ttspico"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "notebooks")


def clips(split: str = "test", count: int = 24) -> list[dict]:
    """Return puppet clips of a split: file, what is known of it, defects with their strength."""
    from ft2.puppet import dataset

    made = RUNS / split / "ratings.jsonl"
    if not made.exists():
        dataset.build(made.parent, count, split, 0, CLIP)
    rows = [json.loads(line) for line in made.read_text().splitlines()]
    return [row | {"video": made.parent / row["video"]} for row in rows]


def conditions(split: str = "train", count: int = 8) -> Path:
    """Return a conditions.jsonl of a split: portraits, sounds and prompts to generate from."""
    from ft2.puppet import dataset

    folder = RUNS / f"conditions-{split}"
    if not (folder / "conditions.jsonl").exists():
        dataset.build_conditions(folder, count, split, 0, CLIP)
    return folder / "conditions.jsonl"


def pairs(num_candidates: int = 6) -> Path:
    """Return a small Talking-NSQ dataset: the base's clips, judged by the critic, paired."""
    from ft2.critic.score import CriticScorer
    from ft2.generator.config import GenerateConfig
    from ft2.generator.sample import Sampler
    from ft2.nsq.build import build
    from ft2.nsq.config import NsqConfig
    from ft2.runs import Silent
    from ft2.wan.weights import load_talking_model

    output = RUNS / "nsq"
    if not (output / "manifest.json").exists():
        values = [
            f"conditions={conditions()}", f"critic={CRITIC}", f"num_candidates={num_candidates}",
            "train_shards=1",
        ]  # fmt: skip
        generate = load_config(GenerateConfig, "nano/generate", ["guidance.audio=1"])
        sampler = Sampler(load_talking_model(generate.model), generate)
        config = load_config(NsqConfig, "nano/nsq", values)
        scorer = CriticScorer(CRITIC)
        build(config, output, sampler, scorer, resume=True, progress=Silent())
    return output


def ft2(*words: str | Path) -> None:
    """Run a command as `ft2 WORDS` in a shell would, and show what it prints.

    Raises:
        RuntimeError: It ended with another exit code than 0.
    """
    from ft2.__main__ import main

    print("$ ft2 " + " ".join(map(str, words)))
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"ft2 ended with exit code {stop.code}") from None
