"""What `ft2 generate` does once its options are read: one video, a list of them, or a plan."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ft2.cli.critic_use import find_critic
from ft2.cli.options import emit, make_progress, say
from ft2.config import load_config
from ft2.critic.checkpoint import read_card, read_lora
from ft2.errors import RunError, UsageError
from ft2.generator.batch import check_rows, generate_rows, read_rows
from ft2.generator.best import Judge
from ft2.generator.checks import check_asked, check_inputs
from ft2.generator.config import GenerateConfig
from ft2.generator.plan import plan_generation
from ft2.generator.record import Job, kept_latents, seed_path
from ft2.generator.run import Talker, generate_one
from ft2.tlpo.policy import load_policy

TALKING = Path("talking.mp4")
"""The video when no name is given."""

_SHOWN = ("video", "videos", "video_sha256", "seconds", "windows", "candidates", "remarks")


def find_judge(critic: Path | None, config: GenerateConfig, several: bool = True) -> Judge | None:
    """Return a critic as a judge that loads once, when it is first asked; None without one.

    Raises:
        UsageError: There is no critic, or nothing to choose from.
    """
    if critic is None:
        return None
    if several and config.num_seeds < 2:
        raise UsageError("--critic chooses among several videos", "set num_seeds, such as 8")
    folder = find_critic(critic)
    clip = read_card(folder).model.clip
    read_lora(folder)

    @cache
    def scorer() -> Any:
        from ft2.critic.score import CriticScorer

        return CriticScorer(folder, device=config.device)

    def score(paths: Sequence[Path]) -> Any:
        return scorer().score(paths)

    return Judge(score, clip.seconds - 0.5 / clip.fps)


def check_policy(policy: Path | None, config: GenerateConfig) -> None:
    """Refuse a policy of another base before the base is loaded.

    Raises:
        UsageError: It is one, or there are no such weights.
    """
    if policy is not None:
        from ft2.tlpo.fits import check_fit

        check_fit(policy, config.model)


def plan_one(
    config: GenerateConfig,
    portrait: Path | None,
    audio: Path | None,
    output: Path,
    judge: Judge | None,
    json: bool,
) -> None:
    """Print what one video would take; inputs that are given are checked."""
    inputs = None
    check_asked(config)
    if portrait is not None and audio is not None:
        inputs = check_inputs(config, portrait, audio, output, judge)
    emit(plan_generation(config, inputs), json)


def make_one(job: Job, judge: Judge | None, *, resume: bool, json: bool, quiet: bool) -> None:
    """Make one video, or several seeds of it, and print what became of it."""
    if _complete(job.config, job.output, resume):
        emit({"video": str(job.output), "remarks": ["already complete"]}, json)
        return
    result = generate_one(
        job.config, job.portrait, job.audio, job.output,
        policy_path=job.policy, make_policy=load_policy, progress=make_progress(quiet), say=say,
        resume=resume, judge=judge,
    )  # fmt: skip
    emit({name: result[name] for name in _SHOWN if name in result}, json)


def _complete(config: GenerateConfig, output: Path, resume: bool) -> bool:
    """Say whether the video is there already.

    Raises:
        UsageError: an output exists without --resume.
    """
    done = output.is_file() and output.with_suffix(".json").is_file()
    if done and resume:
        return True
    seeds = range(config.seed, config.seed + config.num_seeds)
    files = [output] + [seed_path(output, seed) for seed in seeds if config.num_seeds > 1]
    kept = [kept_latents(path) for path in files if kept_latents(path).exists()]
    there = [path for path in files if path.exists()] + kept
    if there and not resume:
        raise UsageError(
            f"the output '{there[0]}' already exists",
            "choose another -o NAME.mp4, or go on with it: --resume",
        )
    return False


def make_batch(
    rows: Path,
    source: str | None,
    overrides: list[str],
    policy: Path | None,
    critic: Path | None,
    output: Path | None,
    resume: bool,
    dry_run: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Make the videos of a list."""
    config = load_config(GenerateConfig, source, overrides)
    judge = find_judge(critic, config)
    check_policy(policy, config)
    if output is None or output.is_file():
        raise UsageError("with --batch the output is a directory", "write -o DIR")
    jobs = []
    for row in read_rows(rows):
        own = load_config(GenerateConfig, source, [*overrides, *row.overrides])
        jobs.append((row, Job(own, row.portrait, row.audio, output / f"{row.name}.mp4", policy)))
    if dry_run:
        good, failed = check_rows(jobs, judge)
        windows = sum(len(inputs.starts) * job.config.num_seeds for _, job, inputs in good)
        emit({"rows": len(jobs), "windows": windows, "refused": failed}, json)
        return
    if output.exists() and not resume:
        raise UsageError(
            f"the output '{output}' already exists", "choose another -o DIR, or add --resume"
        )
    result = generate_rows(
        jobs, output, _talker(config, policy, quiet), say,
        resume=resume, judge=judge,
    )  # fmt: skip
    emit(result, json)
    if result["failed"]:
        raise RunError(
            f"{len(result['failed'])} of {result['rows']} rows failed: "
            f"{', '.join(result['failed'])}",
            f"see {output / 'results.json'}; --resume tries them again",
        )


def _talker(config: GenerateConfig, policy: Path | None, quiet: bool) -> Callable[[], Talker]:
    return lambda: Talker(config, policy, load_policy, make_progress(quiet))
