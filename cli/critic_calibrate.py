"""`ft2 critic calibrate`: P(yes) that means what it says, and how wide a tie is."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ft2.cli.critic_use import Critic, Device, find_critic
from ft2.cli.options import Json, Output, Quiet, emit, make_progress, say


def calibrate(
    ratings: Annotated[
        Path,
        typer.Argument(metavar="RATINGS", help="A ratings.jsonl, of clips or of pairs of clips."),
    ],
    output: Output,
    config: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="method, split, folds.", show_default=False),
    ] = None,
    critic: Critic = None,
    device: Device = "cpu",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a critic with P(yes) calibrated on held-out ratings, or, of pairs, with a tie width."""
    folder = find_critic(critic)
    from ft2.config import load_config
    from ft2.critic.calibrate import calibrate_critic
    from ft2.critic.calibration import CalibrationConfig
    from ft2.critic.eval_page import check_output

    check_output(output)
    settings = load_config(CalibrationConfig, None, config or ())
    result = calibrate_critic(ratings, folder, output, settings, device, make_progress(quiet))
    say(f"use it with: --critic {output}")
    emit(result if json else _short(result), json=json)


def _short(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a person reads: Brier score and calibration error before and after."""
    lines: dict[str, Any] = {"output": result["output"], "method": result["method"]}
    for name, found in result["figures"].items():
        if "before" not in found:
            lines[name] = found
            continue
        before, after = found["before"], found["cross_validated"]
        lines[name] = {
            "answers": found["n"],
            "Brier": f"{before['brier']['value']:.4f} -> {after['brier']['value']:.4f}",
            "ECE": f"{before['ece']['value']:.4f} -> {after['ece']['value']:.4f}",
        }
    return lines
