"""A policy's card and what of it is published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ft2.errors import UsageError
from ft2.files import write_atomic
from ft2.hub import PlannedFile, PushPlan, check_repo_name
from ft2.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ft2.runs import read_json
from ft2.tlpo.policy_files import GATE_FILE, POLICY_FILE, check_files, read_policy

CARD = "README.md"


def policy_dir(path: Path) -> Path:
    """Return the policy directory that a path means: itself, or ``policy/`` of a fusion run.

    Raises:
        UsageError: There is none.
    """
    for folder in (path, path / "policy"):
        if (folder / POLICY_FILE).is_file():
            return folder
    raise UsageError(f"{path} holds no policy", hint="give a fusion run, or a merge")


def policy_card(folder: Path) -> str:
    """Return the card of a policy as Markdown, from its record and, if it is there, its run's."""
    record = read_policy(folder)
    gate = record["gate"]
    weights = gate.get("weights") or "learned" if gate["form"] != "table" else "by noise level"
    lines = [
        "---", "library_name: ft2", "tags: [talking-head, lora, preference-optimization]", "---",
        "", "# Preference policy for an audio-driven portrait generator", "",
        f"LoRA experts for {', '.join(record['experts'])} on a frozen Wan transformer, and the "
        "weights with which they act.", "",
        "| | |", "|---|---|",
        f"| base (hash of architecture and weights) | `{record.get('base')}` |",
        f"| gate | {gate['form']}, {weights} |",
        *(f"| {name} | sha256 `{digest}` |" for name, digest in record.get("sha256", {}).items()),
        "", *_training(folder.parent / "result.json"),
        "Use it with the base that it was trained on; another one is refused:", "",
        "```bash", "ft2 generate --policy DIR --portrait face.png --audio speech.wav -o clip.mp4",
        "```", "",
        "It changes how a portrait talks. Generate only faces and voices whose owners agreed.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _training(result: Path) -> list[str]:
    if not result.is_file():
        return []
    found: dict[str, Any] = read_json(result)
    held_out = found.get("held_out", {})
    text = f"Gate trained on {found.get('pairs')} pairs in {found.get('steps')} steps"
    if held_out.get("pairs"):
        accuracy = held_out["implicit_accuracy"]
        text += f"; held-out implicit accuracy {accuracy:.2f} on {held_out['pairs']} pairs"
    return [text + ".", ""]


def plan_policy_push(path: Path, repo: str, *, private: bool = True) -> PushPlan:
    """Return what would be uploaded of a policy: card, record, experts, gate.

    Raises:
        UsageError: No policy, a file that is not the recorded one, or a bad repository name.
    """
    check_repo_name(repo)
    folder = policy_dir(path)
    record = read_policy(folder)
    check_files(folder, record.get("sha256", {}))
    names = [POLICY_FILE]
    names += [f"experts/{n}/{f}" for n in record["experts"]
              for f in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]  # fmt: skip
    if (folder / GATE_FILE).is_file():
        names.append(GATE_FILE)
    files = [PlannedFile(name, None, (folder / name).stat().st_size) for name in names]
    card = PlannedFile(CARD, None, len(policy_card(folder).encode()))
    return PushPlan(repo, private, (card, *files))


def policy_maker(folder: Path) -> Callable[[PlannedFile, Path], Path]:
    """Return what gives the files of a plan: the policy's own, and the card, which is written."""

    def make(file: PlannedFile, temporary: Path) -> Path:
        if file.path != CARD:
            return folder / file.path
        write_atomic(temporary / CARD, policy_card(folder))
        return temporary / CARD

    return make
