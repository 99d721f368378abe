"""The ablation of base training: stages, lip mask and identity, judged by the truth of puppets.

FantasyTalking's question (arXiv 2504.04842, sections 3.2 and 4.4): what does each stage of audio
alignment bring, and what the identity branch? Every variant trains equally long from equal weights.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ft2 import faces
from ft2.cli.ablate_config import AblationConfig, Name
from ft2.cli.compare import report_page
from ft2.config import load_config
from ft2.errors import UsageError
from ft2.files import read_json, write_atomic, write_json
from ft2.generator.checks import load_sampling
from ft2.generator.config import GenerateConfig, TrainConfig
from ft2.generator.data import read_clips
from ft2.generator.sample import Sampler
from ft2.generator.start import check_training
from ft2.generator.strength import face_motion
from ft2.generator.train import train_generator
from ft2.media import read_image, read_video
from ft2.metrics.shape import shape_distance
from ft2.pairs import DIMENSIONS, Condition, read_conditions
from ft2.puppet import judges
from ft2.puppet.truth import truth_of
from ft2.runs import Progress, RunDir
from ft2.tlpo.compare_table import Rows, markdown, summarise
from ft2.wan.weights import load_talking_model

BOTH: Final[Name] = "both stages"
LANDMARKS, AMOUNT, SHAPE = "lip by landmarks", "movement", "shape error"
COLUMNS = (*DIMENSIONS, LANDMARKS, AMOUNT, SHAPE)
"""The judges' scores (more is better); movement is the landmarks' variance, in thousandths of a
squared face height; shape error is the distance to the portrait's face shape, in percent of its
size (less is better)."""


@dataclass(frozen=True)
class Stage:
    """One training run; variants with the same beginning share it."""

    folder: str
    config: TrainConfig


def stages_of(settings: AblationConfig, variant: Name, seed: int, output: Path) -> list[Stage]:
    """Return the training runs of a variant, in order."""
    share = {"clip stage": 1.0, "frame stage": 0.0}.get(variant, settings.clip_share)
    counts = {"clip": round(share * settings.steps)}
    counts["frame"] = settings.steps - counts["clip"]
    recipe = settings.overrides.get("generator-frame", [])
    preset = load_config(TrainConfig, f"{settings.family}/generator-frame", recipe)
    changes: dict[str, Any] = {"data": settings.data, "model": settings.model, "seed": seed}
    changes["cache"] = preset.cache or output / "encoded"
    if variant == "no identity":
        changes["dropout"] = preset.dropout.model_copy(update={"identity": 1.0})
    found: list[Stage] = []
    for stage, steps in counts.items():
        if steps == 0:
            continue
        name = f"{stage}-{steps}"
        name += "-no-identity" if variant == "no identity" else ""
        name += "-no-mask" if variant == "no lip mask" and stage == "frame" else ""
        folder = f"{found[-1].folder}+{name}" if found else f"seed-{seed}/{name}"
        masked = stage == "frame" and variant != "no lip mask"
        engine = {"decay_steps": steps} if preset.engine.decay_steps else {}
        config = preset.model_copy(update={
            **changes, "stage": stage, "steps": steps,
            "lip_probability": preset.lip_probability if masked else 0.0,
            "engine": preset.engine.model_copy(update=engine),
            "start": str(output / found[-1].folder) if found else None,
            "fresh": () if found else settings.fresh,
        })  # fmt: skip
        found.append(Stage(folder, config))
    return found


def sampling_of(settings: AblationConfig) -> GenerateConfig:
    """Return how every variant's clips are sampled."""
    changes = settings.overrides.get("generate", [])
    return load_sampling(f"{settings.family}/generate", changes)


def check_inputs(settings: AblationConfig, output: Path) -> None:
    """Refuse what is missing before anything loads.

    Raises:
        UsageError: Conditions, data, or what the branches need are missing.
    """
    if not settings.conditions.exists():
        raise UsageError(
            f"{settings.conditions} does not exist",
            "`ft2 puppet build -o DIR --split dev --clips 0 --conditions 48`, then set conditions",
        )
    sampling_of(settings)
    clips = read_clips(settings.data, limit=1)
    for variant in settings.variants:
        first = stages_of(settings, variant, settings.seeds[0], output)[0]
        check_training(first.config, clips)


def plan_ablation(settings: AblationConfig, output: Path) -> dict[str, Any]:
    """Return what an ablation would train and sample, and what it lacks."""
    runs = {
        stage.folder: stage.config.steps
        for seed in settings.seeds
        for variant in settings.variants
        for stage in stages_of(settings, variant, seed, output)
    }
    there = settings.conditions.exists()
    count = len(read_conditions(settings.conditions)) if there else 0
    plan: dict[str, Any] = {
        "variants": list(settings.variants),
        "seeds": list(settings.seeds),
        "conditions": count,
        "training_runs": len(runs),
        "training_steps": sum(runs.values()),
        "sampled_clips": len(settings.seeds)
        * len(settings.variants)
        * count
        * len(settings.samples),
    }
    try:
        check_inputs(settings, output)
    except UsageError as error:
        plan["missing"] = str(error)
    return plan


def run_ablation(
    settings: AblationConfig, output: Path, *, resume: bool, progress: Progress
) -> dict[str, Any]:
    """Train, sample and judge every variant; write ``table.json``, ``table.md``, ``report.html``.

    A table is written after each seed; what is done is found again on resume.
    """
    run = RunDir.open(output, config=settings, resume=resume)
    if run.result is not None:
        return run.result
    conditions = read_conditions(settings.conditions)
    rows: dict[str, Rows] = {}
    table: dict[str, Any] = {}
    for number, seed in enumerate(settings.seeds):
        for place, variant in enumerate(settings.variants):
            done, total = place, len(settings.variants)
            progress.update("ablation", done, total, f"{variant}, seed {seed}")
            model = train_variant(settings, variant, seed, output, progress)
            found = score_variant(settings, variant, model, conditions, progress)
            rows.setdefault(variant, []).extend({**row, "run": number} for row in found)
        seeds = list(settings.seeds[: number + 1])
        table = summarise(rows, COLUMNS, BOTH) | {"seeds": seeds, "conditions": len(conditions)}
        write_json(output / "table.json", table)
        write_atomic(output / "table.md", markdown(table, COLUMNS, BOTH))
        page = report_page(table, "What each part of base training brings", COLUMNS, BOTH)
        write_atomic(output / "report.html", page)
    run.finish(table)
    return table


def train_variant(
    settings: AblationConfig, variant: Name, seed: int, output: Path, progress: Progress
) -> Path:
    """Train a variant's stages that are not there yet; return the last one's run directory."""
    stages = stages_of(settings, variant, seed, output)
    for stage in stages:
        train_generator(stage.config, output / stage.folder, resume=True, progress=progress)
    return output / stages[-1].folder


def score_variant(
    settings: AblationConfig,
    variant: Name,
    folder: Path,
    conditions: list[Condition],
    progress: Progress,
) -> Rows:
    """Return one row of scores a clip of a trained variant; kept beside its weights."""
    record = folder / "scores.json"
    if record.exists():
        kept: Rows = read_json(record)
        return kept
    generate = sampling_of(settings)
    spec = settings.model.model_copy(
        update={"weights": str(folder / "model"), "architecture": None}
    )
    generate = generate.model_copy(update={
        "model": spec, "whole_audio": variant == "clip stage",
        "identity_scale": 0.0 if variant == "no identity" else generate.identity_scale,
    })  # fmt: skip
    model = load_talking_model(spec, generate.device)
    by_id = {c.condition_id: c for c in conditions}
    rows: Rows = []
    made = Sampler(model, generate, None, variant).generate(
        conditions, settings.samples, folder / "clips"
    )
    for clip in made:
        condition = by_id[clip.condition_id]
        scores = judge(clip.video, condition, model.clip)
        group = condition.audio_id.split("@")[0]
        rows.append({"condition": clip.condition_id, "seed": clip.seed, "group": group, **scores})
        total = len(conditions) * len(settings.samples)
        progress.update(f"judge {variant}", len(rows), total)
    write_json(record, rows)
    return rows


def judge(video: Path, condition: Condition, clip: Any) -> Mapping[str, float | None]:
    """Return a clip's scores by column; None where landmarks cannot tell."""
    decoded = read_video(video)
    truth = truth_of(condition, clip)
    found = judges.judge(decoded.frames, truth.probe, truth.driving, decoded.fps)
    points = faces.track(decoded.frames)
    portrait = faces.landmarks(read_image(condition.portrait))
    scores = {d: float(getattr(found, d)) for d in DIMENSIONS} | {
        LANDMARKS: judges.aperture_agreement(points, truth.driving),
        AMOUNT: 1000 * face_motion(points),
        SHAPE: 100 * shape_distance(points, portrait),
    }
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}
