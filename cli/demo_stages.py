"""The stages of the demo, wired from the same functions and configs as the single commands."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft2.cli.demo_config import DemoConfig
from ft2.cli.demo_configs import StageConfigs
from ft2.cli.demo_record import cpu_seconds, peak_mb, reset_peak
from ft2.pairs import DIMENSIONS
from ft2.runs import Progress

if TYPE_CHECKING:
    from ft2.wan.model import TalkingModel

Results = Mapping[str, Any]
Stage = Callable[["Demo", Results], tuple[str, dict[str, Any]]]


@dataclass
class Demo:
    """One run of the demo: its settings, and what stays loaded between stages."""

    settings: DemoConfig
    output: Path
    configs: StageConfigs
    progress: Progress
    found: list[str] = field(default_factory=list)

    @cached_property
    def model(self) -> "TalkingModel":
        """The talking model, loaded once."""
        from ft2.wan.weights import load_talking_model

        return load_talking_model(self.configs.generate.model, self.configs.generate.device)

    def timed(self, stage: Stage, results: Results) -> dict[str, Any]:
        """Run a stage and return its record: time, peak memory, finding, result."""
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(self.settings.threads)
        reset_peak()
        start, busy = time.monotonic(), cpu_seconds()
        # NumPy's small problems take many times as long on several threads as on one
        with threadpool_limits(limits=1, user_api="blas"):
            found, result = stage(self, results)
        return {
            "seconds": round(time.monotonic() - start, 1),
            "cpu_seconds": round(cpu_seconds() - busy, 1),
            "peak_mb": round(peak_mb() + result.get("workers_mb", 0.0), 1),
            "found": found,
            "result": result,
        }


def world(demo: Demo, results: Results) -> tuple[str, dict[str, Any]]:
    """Make rated clips for the critic, and conditions for pairs and evaluation."""
    from ft2.cli.demo_world import CONDITIONS, OWN_FILES, RATINGS, make_world

    del results
    settings, clip = demo.settings, demo.configs.nsq.clip
    counts = make_world(settings.world, settings.seed, clip, demo.output / "world", demo.progress)
    own = sum(counts[name] for name in OWN_FILES.values())
    found = (
        f"{counts[RATINGS]} rated clips; conditions: {counts[CONDITIONS]} to train on, "
        f"{counts[f'test-{CONDITIONS}']} to measure on, {own} to rate"
    )
    return found, counts


def ratings(demo: Demo, results: Results) -> tuple[str, dict[str, Any]]:
    """Let the base make clips and rate them, so that the critic knows such clips."""
    from ft2.cli.demo_ratings import rate_own_clips
    from ft2.generator.sample import Sampler

    del results
    output = demo.output
    counts = rate_own_clips(
        Sampler(demo.model, demo.configs.generate, None, "base"),
        output / "world",
        output / "ratings",
        range(demo.settings.world.own_seeds),
        demo.configs.nsq.clip,
        demo.progress,
    )
    own = sum(count for name, count in counts.items() if name.startswith("own-"))
    return f"{own} of the base's own clips rated", dict(counts)


def critic(demo: Demo, results: Results) -> tuple[str, dict[str, Any]]:
    """Train the critic on the ratings and measure it on other faces, voices and sentences."""
    from ft2.critic.evaluate import evaluate as measure
    from ft2.critic.train import train_critic

    del results
    config, output = demo.configs.critic, demo.output / "critic"
    trained = train_critic(config, output, True, demo.progress)
    adapter, own = output / "adapter", demo.output / "ratings" / "own-test.jsonl"
    table = measure(Path(config.ratings), adapter, progress=demo.progress)
    generated = measure(own, adapter, progress=demo.progress)
    accuracy = {row: _accuracy(cells) for row, cells in table["rows"].items()}
    accuracy["generated"] = _accuracy(generated["rows"]["critic"])
    for row in ("majority", "untrained", "silenced", "audio_swapped"):
        accuracy[f"generated_{row}"] = _accuracy(generated["rows"][row])
    found = ", ".join(
        f"{d} {accuracy['untrained'][d]['value']:.2f} to {accuracy['critic'][d]['value']:.2f}"
        for d in DIMENSIONS
    )
    return f"accuracy {found}", {"accuracy": accuracy, "table": table, "train": trained}


def _accuracy(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Return one row's accuracy by dimension; None where nothing was rated."""
    return {
        d: {**cells[d]["accuracy"], "n": cells[d]["n"]} if d in cells else None for d in DIMENSIONS
    }


def nsq(demo: Demo, results: Results) -> tuple[str, dict[str, Any]]:
    """Let the base generate, the critic judge, and pair the clips."""
    from ft2.cli.nsq_build import load_scorer
    from ft2.generator.sample import Sampler
    from ft2.nsq.build import build

    del results
    config = demo.configs.nsq
    generator = Sampler(demo.model, demo.configs.generate, None, "base")
    summary = build(
        config,
        demo.output / "nsq",
        generator,
        load_scorer(config),
        resume=True,
        progress=demo.progress,
    )
    pairs = ", ".join(f"{store} {count}" for store, count in summary["pairs"].items())
    return f"pairs: {pairs}", summary


def tlpo(demo: Demo, results: Results) -> tuple[str, dict[str, Any]]:
    """Train an expert on each dimension's pairs, then the gate over all three."""
    from ft2.tlpo.train import train_expert, train_fusion

    del results
    experts: dict[str, Any] = {}
    for dimension, config in demo.configs.experts.items():
        start = time.monotonic()
        trained = train_expert(
            config,
            demo.output / f"expert-{dimension}",
            resume=True,
            progress=demo.progress,
            model=demo.model,
        )
        seconds = round(time.monotonic() - start, 1)
        experts[dimension] = {**trained, "held_out": _proportion(trained), "seconds": seconds}
    start = time.monotonic()
    fusion: dict[str, Any] = train_fusion(
        demo.configs.fusion,
        demo.output / "fusion",
        resume=True,
        progress=demo.progress,
        model=demo.model,
    )
    fusion = {**fusion, "seconds": round(time.monotonic() - start, 1)}
    found = ", ".join(
        f"{d} {e['held_out']['value']:.2f}" for d, e in experts.items() if e["held_out"]
    )
    weights = ", ".join(f"{d} {w:.2f}" for d, w in fusion["mean_weights"].items())
    text = f"held-out implicit accuracy {found}; mean gate weights {weights}"
    return text, {"experts": experts, "fusion": fusion}


def _proportion(trained: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the held-out implicit accuracy of an expert with Wilson's 95 % interval."""
    held_out = trained["held_out"]
    n = held_out["pairs"]
    if not n:
        return None
    p, z = held_out["implicit_accuracy"], 1.959964
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * ((p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5)
    return {"value": p, "low": centre - half, "high": centre + half, "n": n}


def evaluate(demo: Demo, results: Results) -> tuple[str, dict[str, Any]]:
    """Sample every policy on unseen faces and speech and judge the clips by ground truth."""
    from ft2.cli import demo_evaluate as evaluation
    from ft2.generator.sample import Sampler
    from ft2.pairs import read_conditions
    from ft2.tlpo.policy import Policy, load_policy

    del results
    settings, output = demo.settings, demo.output / "evaluation"
    conditions = read_conditions(demo.output / "world" / "test-conditions.jsonl")
    seeds = range(settings.seed, settings.seed + settings.test_seeds)
    gated = load_policy(demo.output / "fusion", demo.model)
    policies: dict[str, Policy | None] = {evaluation.BASE: None}
    policies |= {f"{d} expert": gated.only(d) for d in DIMENSIONS}
    policies |= {evaluation.merge_name(w): gated.constant(w) for w in settings.merges}
    policies[evaluation.POLICY] = gated
    rows = {}
    for name, policy in policies.items():
        folder = output / evaluation.folder_name(name)

        def clips(
            policy: Policy | None = policy, name: str = name, folder: Path = folder
        ) -> dict[tuple[str, int], Path]:
            sampler = Sampler(demo.model, demo.configs.generate, policy, name)
            made = {}
            for clip in sampler.generate(conditions, seeds, folder):
                made[clip.condition_id, clip.seed] = clip.video
                total = len(conditions) * len(seeds)
                demo.progress.update(f"generate with {name}", len(made), total)
            return made

        rows[name] = evaluation.score_policy(
            name, conditions, clips, output, demo.configs.nsq.clip, demo.progress
        )  # fmt: skip
    make_own_clips(demo)
    result = evaluation.summarise(rows)
    gain = result["difference_to_base"][evaluation.POLICY]
    found = ", ".join(f"{d} {gain[d]['value']:+.2f}" for d in DIMENSIONS)
    return f"policy against base: {found}", result


def make_own_clips(demo: Demo) -> None:
    """Generate from the user's portrait and speech, if there are any, with base and policy."""
    from ft2.cli.options import say
    from ft2.generator.inputs import load_portrait
    from ft2.generator.run import generate_one
    from ft2.media import write_png
    from ft2.tlpo.policy import load_policy

    settings, config, own = demo.settings, demo.configs.generate, demo.output / "own"
    if settings.portrait is None or settings.audio is None:
        return
    portrait, audio = Path(settings.portrait), Path(settings.audio)
    own.mkdir(exist_ok=True)
    for name, policy in (("base", None), ("policy", demo.output / "fusion")):
        if not (own / f"{name}.json").exists():
            generate_one(
                config, portrait, audio, own / f"{name}.mp4", policy_path=policy,
                make_policy=load_policy, progress=demo.progress, say=say,
            )  # fmt: skip
    picture = load_portrait(portrait, demo.configs.nsq.clip, config.portrait_margin)
    write_png(own / "portrait.png", picture)


def report(demo: Demo, results: Results) -> tuple[str, dict[str, Any]]:
    """Write the page."""
    from ft2.cli.demo_report import make_report

    path = make_report(demo, results)
    return str(path), {"path": str(path)}


STAGES: tuple[tuple[str, Stage], ...] = (
    ("world", world),
    ("ratings", ratings),
    ("critic", critic),
    ("nsq", nsq),
    ("tlpo", tlpo),
    ("evaluate", evaluate),
    ("report", report),
)
"""Name and function of every stage, in order."""
