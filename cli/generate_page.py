"""``ft2 generate --ui``: the model loads once, then a page on this machine makes videos with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ft2.cli.options import emit, make_progress, say
from ft2.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from ft2.generator.best import Judge
    from ft2.generator.config import GenerateConfig

PORT = 7860


def open_page(
    source: str | None,
    overrides: list[str],
    policy: Path | None,
    judge: "Judge | None",
    output: Path,
    *,
    port: int | None,
    token: str | None,
    json: bool,
    quiet: bool,
) -> None:
    """Load model and policy, then serve the page on loopback until it is interrupted.

    Args:
        source: Preset or YAML file; None for the defaults.
        overrides: ``KEY=VALUE`` on top; the page's fields begin with their values.
        policy: Policy to load, or None for the base.
        judge: Chooses the best of several seeds, or None.
        output: Directory of the videos, one folder a job.
        port: 0 takes a free one, None 7860.
        token: Part of the address; drawn anew when None.
        json: Print the address as a JSON object.
        quiet: No progress.

    Raises:
        UsageError: The config, the policy or the output cannot be used, or the port is taken.
        Interrupted: On SIGINT or SIGTERM, with the running job ended and removed.
    """
    import secrets

    from ft2.config import load_config
    from ft2.generator.checks import check_asked, check_writable
    from ft2.generator.config import GenerateConfig
    from ft2.generator.desk import Desk, JobProgress
    from ft2.generator.page import generate_app, page_fields
    from ft2.generator.run import Talker
    from ft2.loopback import HOST, load_fastapi, serve_app
    from ft2.tlpo.policy import load_policy

    load_fastapi()
    config = load_config(GenerateConfig, source, overrides)
    check_asked(config)
    if output.is_file():
        raise UsageError(f"with --ui the output is a directory, not '{output}'", "write -o DIR")
    check_writable(output)
    progress = JobProgress(make_progress(quiet))
    talker = Talker(config, policy, load_policy, progress)
    experts = () if talker.policy is None else talker.policy.experts
    fields = page_fields(config, experts, judge is not None)
    desk = Desk(
        talker,
        progress,
        lambda more: load_config(GenerateConfig, source, [*overrides, *more]),
        ["prompt", *(field["key"] for field in fields)],
        output,
        policy,
        judge,
    )
    secret = token or secrets.token_urlsafe(12)

    def ready(taken: int) -> None:
        address = f"http://{HOST}:{taken}/?token={secret}"
        if json:
            emit({"address": address}, json=True)
        else:
            typer.echo(address)
        say(f"videos go to {output}/; Ctrl-C ends")

    facts = {**_facts(config, talker), "policy": str(policy) if policy else None, "fields": fields}
    try:
        serve_app(generate_app(desk, facts, secret), PORT if port is None else port, ready)
    except KeyboardInterrupt:
        raise Interrupted(2, f"finished videos are in '{output}'") from None
    finally:
        desk.close()


def _facts(config: "GenerateConfig", talker: Any) -> dict[str, Any]:
    clip = talker.model.clip
    shape = f"{clip.width} x {clip.height}, {clip.fps:g} frames a second"
    name, weights = talker.model.architecture.name, config.model.weights
    known = name if name == weights else f"{name} ({weights})"
    return {"model": known, "clip": shape, "prompt": config.prompt}
