"""The command `ft2 demo`: the whole loop in one process, stage by stage, resumable."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ft2.cli.options import (
    ConfigArgs,
    DryRun,
    Json,
    Output,
    Quiet,
    Resume,
    Verbose,
    emit,
    make_progress,
    say,
    split_config_args,
)

if TYPE_CHECKING:
    from ft2.cli.demo_config import DemoConfig
    from ft2.cli.demo_stages import Demo
    from ft2.runs import Interrupts, Progress

Portrait = Annotated[
    Path | None,
    typer.Option("--portrait", metavar="FILE", help="A face of your own.", show_default=False),
]
Audio = Annotated[
    Path | None,
    typer.Option("--audio", metavar="FILE", help="Speech of your own.", show_default=False),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Seed of every stage.", show_default=False)
]


def demo(
    config: ConfigArgs = None,
    output: Output = Path("runs/demo"),
    resume: Resume = False,
    portrait: Portrait = None,
    audio: Audio = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run critic, pairs, TLPO and generation on real faces and speech; ends with a report."""
    del verbose
    from ft2.cli.demo_config import DemoConfig
    from ft2.config import load_config
    from ft2.runs import check_output

    source, overrides = split_config_args(config)
    given = {"portrait": portrait, "audio": audio, "seed": seed}
    overrides += [f"{key}={_yaml(value)}" for key, value in given.items() if value is not None]
    recorded = output / "config.yaml"
    if resume and source is None and recorded.is_file():
        source = str(recorded)
    settings = load_config(DemoConfig, source or "nano/demo", overrides)
    if dry_run:
        emit(_plan(settings, output), json)
        return
    check_output(output, resume=resume)
    result = run_demo(settings, output, resume, make_progress(quiet))
    if json:
        emit(result, json=True)
    else:
        _print(result, output)


def _yaml(value: object) -> str:
    import json

    return json.dumps(str(value)) if isinstance(value, Path) else str(value)


def _plan(settings: "DemoConfig", output: Path) -> dict[str, Any]:
    """Check what can be checked before anything loads, and return what the demo would do."""
    from ft2.cli.demo_checks import check_extras, check_files
    from ft2.cli.demo_configs import stage_configs

    configs = stage_configs(settings, output)
    check_extras(configs)
    check_files(settings, configs)
    world = settings.world
    nsq = configs.nsq
    return {
        "output": str(output),
        "seed": settings.seed,
        "rated_clips": world.train_ratings + world.dev_ratings + world.test_ratings,
        "critic_steps": configs.critic.steps,
        "candidates": world.train_conditions * nsq.num_candidates,
        "expert_steps": {name: c.loop.num_steps for name, c in configs.experts.items()},
        "fusion_steps": configs.fusion.loop.num_steps,
        "evaluation_clips": world.test_conditions
        * settings.test_seeds
        * (5 + len(settings.merges)),
        "own_portrait": settings.portrait,
        "own_audio": settings.audio,
    }


def run_demo(
    settings: "DemoConfig", output: Path, resume: bool, progress: "Progress"
) -> dict[str, Any]:
    """Run every stage that is not finished and return the content of result.json.

    Raises:
        UsageError: an input is wrong, or the directory is not free.
        Interrupted: a signal came; the hint says how to go on.
    """
    from ft2.cli.demo_checks import check_extras, check_inputs
    from ft2.cli.demo_configs import GENERATE_FILE, stage_configs
    from ft2.cli.demo_stages import STAGES, Demo
    from ft2.config import dump_yaml
    from ft2.errors import Interrupted
    from ft2.runs import Interrupts, RunDir, check_output, read_json, write_atomic, write_json

    check_output(output, resume=resume)
    configs = stage_configs(settings, output)
    check_extras(configs)
    check_inputs(settings, configs)
    run = RunDir.open(output, config=settings, resume=resume)
    if run.result is not None:
        _write_lost_page(Demo(settings, output, configs, progress))
        say(f"already complete: {output}")
        return run.result
    write_atomic(output / GENERATE_FILE, dump_yaml(configs.generate))
    results: dict[str, Any] = {}
    try:
        with Interrupts() as interrupts:
            watched = _Watched(progress, interrupts)
            demo_run = Demo(settings, output, configs, watched)
            for number, (name, stage) in enumerate(STAGES, start=1):
                record = output / "stages" / f"{name}.json"
                if not record.exists():
                    say(f"{number}/{len(STAGES)} {name}")
                    write_json(record, demo_run.timed(stage, results))
                results[name] = read_json(record)
                took = f"{results[name]['seconds']:.0f} s, {results[name]['peak_mb']:.0f} MB"
                say(f"  {name}: {results[name]['found']} ({took})")
                interrupts.check()
    except Interrupted as error:
        raise Interrupted(error.signum, f"go on with: ft2 demo -o {output} --resume") from error
    result = _result(results, output)
    run.finish(result)
    return result


def _write_lost_page(demo_run: "Demo") -> None:
    """Write the page of a complete demo again where somebody removed it."""
    from ft2.cli.demo_report import make_report
    from ft2.cli.demo_stages import STAGES
    from ft2.runs import read_json

    page, stages = demo_run.output / "report.html", demo_run.output / "stages"
    if not page.exists():
        say(f"{page} was gone; it is written again")
        names = [name for name, _ in STAGES if name != "report"]
        make_report(demo_run, {name: read_json(stages / f"{name}.json") for name in names})


class _Watched:
    """Progress that also is the safe point at which a signal stops a stage."""

    def __init__(self, progress: "Progress", interrupts: "Interrupts") -> None:
        self._progress, self._interrupts = progress, interrupts

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Pass the report on; raise Interrupted when a signal came."""
        self._progress.update(stage, done, total, note)
        self._interrupts.check()


def _result(results: Mapping[str, Any], output: Path) -> dict[str, Any]:
    stages = {
        name: {key: value for key, value in record.items() if key != "result"}
        for name, record in results.items()
    }
    return {
        "report": str(output / "report.html"),
        "seconds": round(sum(record["seconds"] for record in results.values()), 1),
        "peak_mb": max(record["peak_mb"] for record in results.values()),
        "critic": results["critic"]["result"]["accuracy"],
        "pairs": results["nsq"]["result"]["pairs"],
        "experts": results["tlpo"]["result"]["experts"],
        "scores": results["evaluate"]["result"]["scores"],
        "difference_to_base": results["evaluate"]["result"]["difference_to_base"],
        "stages": stages,
    }


def _print(result: Mapping[str, Any], output: Path) -> None:
    """Print the one table of the demo on stdout, and where the report is."""
    from ft2.cli.demo_table import table_text

    typer.echo(table_text(result))
    typer.echo(f"report: {output / 'report.html'}")
    say(f"{result['seconds'] / 60:.1f} minutes, peak memory {result['peak_mb'] / 1000:.1f} GB")
