"""Put a trained base among the shipped weights, with a record of how it was made."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ft2.critic.heads import SEEN
from ft2.errors import UsageError
from ft2.qwen.spec import QwenSpec
from ft2.qwen.thinker import new_thinker, save_thinker
from ft2.qwen.tokens import build_processor
from ft2.runs import hash_file, load_tensors, read_json, write_json

FILE = "thinker.safetensors"


def publish(
    runs: Sequence[Path], directory: Path, figures: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write the last run's base to `directory` in float16 and note it in ``provenance.json``.

    Other entries of that file are kept.

    Args:
        runs: Run directories of `ft2 critic pretrain`, in order: each but the first started from
            the one before, which may have been stopped early.
        directory: Where shipped weights lie (`ft2.weights.nano_dir()`).
        figures: Held-out figures of critics trained on this base, to be recorded.

    Returns:
        The entry ``thinker`` of ``provenance.json``.

    Raises:
        UsageError: A run is not complete.
    """
    if not (runs[-1] / "result.json").is_file():
        raise UsageError(
            f"{runs[-1]} is not complete", "finish it: ft2 critic pretrain ... --resume"
        )
    records = [_record(run) for run in runs]
    spec = QwenSpec.model_validate(read_model(runs[-1]))
    processor = build_processor(spec)
    thinker = new_thinker(spec, processor)
    tensors, _ = load_tensors(runs[-1] / "weights" / FILE)
    thinker.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    path = save_thinker(thinker, processor, directory)
    files = [path, *sorted((directory / "thinker").iterdir())]
    entry: dict[str, Any] = {
        "what": "Qwen2_5OmniThinkerForConditionalGeneration, nano sizes, trained from nothing",
        "seen": SEEN,
        "runs": records,
        "held_out": dict(figures or {}),
        "sha256": {str(f.relative_to(directory)): hash_file(f) for f in files},
    }
    record = directory / "provenance.json"
    known = read_json(record) if record.is_file() else {}
    write_json(record, {**known, "thinker": entry})
    return entry


def read_model(run: Path) -> dict[str, Any]:
    """Return the `model` block of a run's ``config.yaml``."""
    import yaml

    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    model: dict[str, Any] = config["model"]
    return model


def _record(run: Path) -> dict[str, Any]:
    """Return what a run did, its directories by their last name only."""
    import yaml

    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["model"]
    command = read_json(run / "command.json")
    short = {"data": Path(config["data"]).name, "initial": config["initial"] and "the run before"}
    changed = [f"{key}={value}" for key, value in (config | short).items() if value is not None]
    return {
        "command": "ft2 critic pretrain " + " ".join(changed),
        "code": command["git"],
        "packages": command["packages"],
        "device": command["device"],
        **_done(run),
    }


def _done(run: Path) -> dict[str, Any]:
    """Return steps and seconds of a run, and of a complete one its held-out losses."""
    if (run / "result.json").is_file():
        result = read_json(run / "result.json")
        return {key: result[key] for key in ("steps", "seconds", "clips", "held_out")}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {"steps": last["step"], "seconds": round(last["seconds"], 1), "stopped": True}
