"""The last sections of the demo's page: files, commands of single stages, remarks."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ft2.cli.demo_configs import AGAIN
from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS, read_conditions
from ft2.report import Command, FileEntry

if TYPE_CHECKING:
    from ft2.cli.demo_stages import Demo


def made_files(output: Path) -> list[FileEntry]:
    """Return what the demo made and where it lies.

    Raises:
        UsageError: a file is missing.
    """
    entries = {
        "ratings/ratings.jsonl": "rated clips: what the critic learned from and is measured on",
        "world/conditions.jsonl": "portraits and speech that candidates were made for",
        "critic/adapter": "the trained critic (PEFT)",
        "nsq/README.md": "card of the preference data",
        "nsq/data": "pairs and clips as Arrow shards; datasets.load_dataset reads the folder",
        "expert-motion/adapter": "the motion expert (PEFT)",
        "expert-lip/adapter": "the lip expert (PEFT)",
        "expert-quality/adapter": "the quality expert (PEFT)",
        "fusion/policy": "the policy: experts and gate; give it to ft2 generate --policy",
        "evaluation": "every clip of every policy, and its scores",
        "result.json": "all figures of this page",
    }
    for name in entries:
        if name != "result.json" and not (output / name).exists():
            raise UsageError(f"{output / name} is missing", "run the demo anew")
    return [FileEntry(str(output / name), what) for name, what in entries.items()]


def commands(demo: "Demo") -> list[Command]:
    """Return the commands that run each stage alone, from what the demo wrote."""
    lines, output = demo.configs.commands, demo.output
    world = output / "world"
    example = read_conditions(world / "test-conditions.jsonl")[0]
    build = ["ft2", "puppet", "build", "--split", "train", "--seed", str(100 * demo.settings.seed)]
    own = output / AGAIN / "own-ratings"
    judge = ["ft2", "critic", "eval", str(output / "ratings/ratings.jsonl")]
    judge += ["--critic", str(output / "critic/adapter")]
    make = ["ft2", "generate", str(output / "generate.yaml"), "--portrait", str(example.portrait)]
    make += ["--audio", str(example.audio), "--policy", str(output / "fusion"), "-o", "clip.mp4"]
    return [
        Command(
            "Rated clips (one of the jobs; train, dev and test each)",
            shlex.join([*build, "--clips", "60", "-o", str(output / AGAIN / "ratings-train")]),
        ),
        Command(
            "Conditions: portraits with speech",
            shlex.join([*build, "--clips", "0", "--conditions", "16", "-o", str(own)]),
        ),
        Command("Let the base make clips and rate them again", _redo(output, "ratings")),
        Command("Train the critic", lines["critic"]),
        Command("Measure it", shlex.join(judge)),
        Command("Generate candidates, judge and pair them", lines["nsq"]),
        *(Command(f"Train the {d} expert", lines[f"expert-{d}"]) for d in DIMENSIONS),
        Command("Train the gate", lines["fusion"]),
        Command("Make a clip", shlex.join(make)),
        Command("Evaluate every policy again", _redo(output, "evaluate", "evaluation")),
    ]


def _redo(output: Path, stage: str, folder: str | None = None) -> str:
    """Return the commands that run one stage of the demo again, with what came before it."""
    done = [output / (folder or stage), output / "stages" / f"{stage}.json", output / "result.json"]
    remove = shlex.join(["rm", "-r", *map(str, done)])
    return f"{remove} && {shlex.join(['ft2', 'demo', '-o', str(output), '--resume'])}"


def notes() -> list[str]:
    """Return what a reader must know to judge the figures."""
    return [
        "The base generator of the nano family is deliberately imperfect: it was trained on clean "
        "and on defective clips, so that preferences have something to improve. The gains here "
        "say that the method works at this scale; they say nothing about the size of gains on a "
        "full-size model.",
        "The ratings are not people's: defects of known kind and strength were put into rendered "
        "clips, and a clip is rated No on the dimension that was spoiled. Generated clips were "
        "rated by the ground-truth judges: Yes above the median of such clips, No below, the "
        "middle fifth not at all.",
        "The faces are photographs moved by a renderer, at 64 pixels. The models know such faces "
        "only.",
        "One run, one seed: intervals cover the choice of clips and utterances, not the luck of "
        "training. Try --seed 1.",
        "The ground-truth judges also rated the critic's generated clips, so they are not "
        "independent of what the policy was trained for. The landmark judge is.",
        "The critic is asked by its own threshold per dimension, fitted on ratings of a third "
        "group of faces.",
    ]
