"""Commands of `ft2 weights`: make the shipped nano weights again, from nothing."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ft2.cli.options import (
    ConfigArgs,
    DryRun,
    Json,
    Output,
    Quiet,
    Resume,
    emit,
    make_progress,
    read_config,
    say,
)
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.cli.weights_config import WeightsConfig
    from ft2.runs import Progress

app = typer.Typer(help="Make the shipped nano weights again.", no_args_is_help=True)


@app.callback()
def _callback() -> None:
    """Make the shipped nano weights again."""


@app.command()
def build(
    args: ConfigArgs = None,
    output: Output = Path("runs/weights"),
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make puppet clips, train generator and critic base on them, collect DIR/nano (hours)."""
    from ft2.cli.weights_config import WeightsConfig
    from ft2.runs import check_output

    settings = read_config(WeightsConfig, args)
    commands = stage_commands(settings, output)
    if dry_run:
        emit({"output": str(output), "commands": commands}, json)
        return
    check_output(output, resume=resume)
    emit(_build(settings, output, resume, make_progress(quiet)), json)


def stage_commands(settings: "WeightsConfig", output: Path) -> list[str]:
    """Return the command line of every training stage, in order."""
    frame = ["start=" + str(output / "generator-clip"), *settings.generator_frame]
    data = f"data={output / 'arrays' / 'train'}"
    lines = [
        f"ft2 generator train nano/generator-clip {data} {' '.join(settings.generator_clip)}"
        f" -o {output / 'generator-clip'}",
        f"ft2 generator train nano/generator-frame {data} {' '.join(frame)}"
        f" -o {output / 'generator-frame'}",
    ]
    for number, given in enumerate(_thinker_runs(settings, output)):
        lines.append(f"ft2 critic pretrain {' '.join(given)} -o {output / f'thinker-{number}'}")
    return lines


def _thinker_runs(settings: "WeightsConfig", output: Path) -> list[list[str]]:
    """Return the settings of every run of the critic's base; each starts from the one before."""
    runs = []
    for number, given in enumerate(settings.thinker):
        start = [] if number == 0 else [f"initial={output / f'thinker-{number - 1}' / 'weights'}"]
        runs.append([f"data={output / 'arrays'}", *start, *given])
    return runs


def _build(
    settings: "WeightsConfig", output: Path, resume: bool, progress: "Progress"
) -> dict[str, Any]:
    from ft2.critic.publish import publish
    from ft2.runs import RunDir

    run = RunDir.open(output, config=settings, resume=resume)
    if run.result is not None:
        return dict(run.result)
    _make_arrays(settings, output, progress)
    generator = _train_generator(settings, output, progress)
    runs = _train_thinker(settings, output, progress)
    target = output / "nano"
    shutil.copytree(generator / "model", target, dirs_exist_ok=True)
    publish(runs, target)
    result = {
        "weights": str(target),
        "megabytes": round(sum(p.stat().st_size for p in target.rglob("*")) / 1e6, 1),
        "commands": stage_commands(settings, output),
    }
    run.finish(result)
    say(f"use them with model.weights={target}, or copy them over src/ft2/weights/nano")
    return result


def _make_arrays(settings: "WeightsConfig", output: Path, progress: "Progress") -> None:
    from ft2.config import ClipFormat
    from ft2.puppet.dataset import build_arrays

    for split, count in (("train", settings.train_clips), ("dev", settings.dev_clips)):
        folder = output / "arrays" / split
        build_arrays(
            folder, split, count, ClipFormat(), num_workers=settings.workers, progress=progress
        )


def _train_generator(settings: "WeightsConfig", output: Path, progress: "Progress") -> Path:
    from ft2.cli.generator import load_speech
    from ft2.config import load_config
    from ft2.generator.config import TrainConfig
    from ft2.generator.train import train_generator

    data = f"data={output / 'arrays' / 'train'}"
    first, last = output / "generator-clip", output / "generator-frame"
    for preset, given, folder in (
        ("nano/generator-clip", [data, *settings.generator_clip], first),
        ("nano/generator-frame", [data, f"start={first}", *settings.generator_frame], last),
    ):
        config = load_config(TrainConfig, preset, given)
        train_generator(config, folder, resume=True, speech=load_speech, progress=progress)
    return last


def _train_thinker(settings: "WeightsConfig", output: Path, progress: "Progress") -> list[Path]:
    from ft2.config import load_config
    from ft2.critic.base import PretrainConfig, pretrain

    if not settings.thinker:
        raise UsageError("no runs of the critic's base are given", "leave out thinker=[]")
    runs = []
    for number, given in enumerate(_thinker_runs(settings, output)):
        runs.append(output / f"thinker-{number}")
        pretrain(load_config(PretrainConfig, None, given), runs[-1], True, progress)
    return runs
