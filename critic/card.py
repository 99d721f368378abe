"""A critic's model card from its own facts and figures, and what of it is published."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ft2.critic.checkpoint import FILES, CriticCard, read_card, read_lora
from ft2.critic.evaluate_pairs import METRICS
from ft2.critic.facts import critic_facts
from ft2.errors import UsageError
from ft2.files import hash_file, read_json, write_atomic
from ft2.hub import PlannedFile, PushPlan, check_repo_name

CARD = "README.md"
TASK = "video-classification"

Evaluation = Mapping[str, Any]
"""What `ft2 critic eval -o` wrote into ``eval.json``."""


AGAIN = "make it again: ft2 critic eval RATINGS --critic DIR -o DIR"


def read_evaluation(path: Path, critic: Path) -> Evaluation:
    """Return an ``eval.json`` of a critic.

    Raises:
        UsageError: No such file, not a whole one of `ft2 critic eval`, without any figure, or of
            another critic.
    """
    if not path.is_file():
        raise UsageError(f"there is no evaluation {path}", "make one: ft2 critic eval ... -o DIR")
    found = read_json(path)
    if not isinstance(found, dict) or not ("rows" in found or "dimensions" in found):
        raise UsageError(f"{path} is no eval.json of `ft2 critic eval`", "give DIR/eval.json")
    try:
        results, _ = eval_results(found), _figures(found)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__} {error}"
        raise UsageError(f"{path} is no whole eval.json: {reason}", AGAIN) from error
    if not results:
        raise UsageError(f"{path} has no figure to show", AGAIN)
    _check_critic(found.get("critic"), critic, path)
    return found


def _check_critic(recorded: object, critic: Path, path: Path) -> None:
    """Refuse figures that are another critic's, or do not say whose they are."""
    own = critic_facts(critic)["sha256"]
    known = recorded.get("sha256") if isinstance(recorded, dict) else None
    if known is None:
        raise UsageError(f"{path} does not say which critic its figures are of", AGAIN)
    if known != own:
        raise UsageError(
            f"{path} has the figures of another critic (sha256 {str(known)[:12]}, {critic} has "
            f"{own[:12]})",
            AGAIN,
        )


def eval_results(evaluation: Evaluation) -> list[Any]:
    """Return an `EvalResult` for each dimension and metric that has a value."""
    from huggingface_hub import EvalResult

    name = str(evaluation.get("ratings", "ratings"))

    def result(dimension: str, metric: str, shown: str, value: float) -> EvalResult:
        return EvalResult(
            task_type=TASK, task_name=dimension, dataset_type=name, dataset_name=name,
            dataset_config=dimension, dataset_split=str(evaluation.get("split", "test")),
            metric_type=metric, metric_name=shown, metric_value=round(value, 4),
        )  # fmt: skip

    found = []
    for dimension, cell in evaluation.get("rows", {}).get("critic", {}).items():
        found.append(result(dimension, "accuracy", "accuracy", cell["accuracy"]["value"]))
        if cell["auc"] and cell["auc"]["value"] is not None:
            found.append(result(dimension, "roc_auc", "AUC", cell["auc"]["value"]))
        found.append(
            result(dimension, "brier_score", "Brier", cell["calibration"]["brier"]["value"])
        )
    for dimension, cell in evaluation.get("dimensions", {}).items():
        for key, shown in METRICS.items():
            if cell["n"] and cell[key]["value"] is not None:
                found.append(result(dimension, "accuracy", shown, cell[key]["value"]))
    return found


def model_card(folder: Path, evaluation: Evaluation | None, base_model: str | None) -> str:
    """Return the card as Markdown with its YAML head.

    Args:
        folder: The adapter.
        evaluation: Figures to show; None shows none.
        base_model: The base's name on the Hub; None where it has none.
    """
    from huggingface_hub import ModelCardData

    card = read_card(folder)
    data = ModelCardData(
        pipeline_tag=TASK,
        library_name="peft",
        base_model=base_model,
        tags=["reward-model", "talking-head", "lip-sync", "preference-optimization"],
        model_name="Talking-Critic",
        eval_results=eval_results(evaluation) if evaluation else None,
        base_model_relation="adapter" if base_model else None,
    )
    lines = [
        "---", data.to_yaml(), "---", "", "# Talking-Critic", "",
        "A LoRA on the text decoder of a Qwen2.5-Omni Thinker. Asked about a talking clip, it "
        "gives P(yes) per dimension from the logits of the first answer token:", "",
        "| dimension | question | threshold (log-odds) |", "|---|---|---|",
        *(f"| {d} | {asked} | {card.thresholds[d]:.3f} |" for d, asked in card.questions.items()),
        "", *_facts(folder, card), *_training(folder.parent / "result.json"),
        *_figures(evaluation), *_use(),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _facts(folder: Path, card: CriticCard) -> list[str]:
    clip = card.model.clip
    looks = len(card.model.streams) or "one for all questions"
    rows = {
        "objective": card.objective,
        "clip format": f"{clip.num_frames} frames at {clip.fps} a second, "
        f"sound at {clip.sample_rate} Hz, aligned face",
        "streams": looks,
        "base (sha256)": f"`{card.base_sha256}`" if card.base_sha256 else "a foreign model",
        "adapter (sha256)": f"`{hash_file(folder / FILES[1])}`",
        "calibration": (card.calibration and card.calibration.method)
        or "threshold of the dev split",
    }
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items()), ""]


def _training(path: Path) -> list[str]:
    if not path.is_file():
        return []
    found = read_json(path)
    ratings = found["ratings"]
    held = ", ".join(f"{d} {x:.3f}" for d, x in found.get("held_out_accuracy", {}).items())
    text = f"Trained on {ratings['train']} ratings in {found['steps']} steps"
    if held:
        text += f"; on {ratings['dev']} held-out ratings, which also chose the step: {held}"
    return ["## Training", "", text + ".", ""]


def _figures(evaluation: Evaluation | None) -> list[str]:
    if evaluation is None:
        return ["## Figures", "", "None were given with this card.", ""]
    if "rows" in evaluation:
        head = list(evaluation["thresholds"])
        rows = [
            [name, *(_cell(cells.get(d, {}).get("accuracy")) for d in head)]
            for name, cells in evaluation["rows"].items()
        ]
        about = f"Accuracy on {evaluation['clips']} clips of the split {evaluation['split']}, "
        about += "95 % bootstrap over utterances."
    else:
        head = list(evaluation["dimensions"])
        rows = [
            [shown, *(_cell(evaluation["dimensions"][d].get(key)) for d in head)]
            for key, shown in METRICS.items()
        ]
        about = "Agreement with people's choices, 95 % bootstrap over prompts."
    table = [f"| {' | '.join(row)} |" for row in (["", *head], ["---"] * (len(head) + 1), *rows)]
    return ["## Figures", "", about, "", *table, ""]


def _cell(value: Mapping[str, Any] | None) -> str:
    if not value or value.get("value") is None:
        return "\u2013"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _use() -> list[str]:
    return [
        "## Use", "", "```python", "from ft2.critic import TalkingCritic", "",
        'critic = TalkingCritic.from_pretrained("OWNER/NAME")',
        'print(critic.score(videos=["a.mp4"])[0].p)', "```", "",
        "Scores compare only within one critic, and best among clips of one prompt. Do not use it "
        "to judge people, to detect forged video, or as the only judge of what was trained against "
        "it: a policy learns to please its critic. It knows the faces and voices of its ratings "
        "only.",
    ]  # fmt: skip


def published(folder: Path, name: str, base_model: str | None) -> bytes:
    """Return a file of the adapter as it goes up: a base is named, not where it lay."""
    if name == FILES[1]:
        return (folder / name).read_bytes()
    found: dict[str, Any] = read_json(folder / name)
    place = found["model"] if name == FILES[2] else found
    key = "weights" if name == FILES[2] else "base_model_name_or_path"
    if place.get(key) and place[key] != "nano":
        place[key] = base_model or Path(place[key]).name
    return (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode()


def plan_critic_push(
    folder: Path, repo: str, card: Callable[[], str], base_model: str | None, *, private: bool
) -> PushPlan:
    """Return what would be uploaded: card, adapter, ``critic.json``.

    Raises:
        UsageError: No critic, a file is missing or damaged, or a bad repository name.
    """
    check_repo_name(repo)
    read_card(folder)
    read_lora(folder)
    files = [PlannedFile(name, None, len(published(folder, name, base_model))) for name in FILES]
    head = PlannedFile(CARD, None, len(card().encode()))
    return PushPlan(repo, private, (head, *files))


def critic_maker(
    folder: Path, card: Callable[[], str], base_model: str | None
) -> Callable[[PlannedFile, Path], Path]:
    """Return what writes the files of a plan into a temporary folder."""

    def make(file: PlannedFile, temporary: Path) -> Path:
        known = file.path != CARD
        body = published(folder, file.path, base_model) if known else card().encode()
        write_atomic(temporary / file.path, body)
        return temporary / file.path

    return make
