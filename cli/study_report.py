"""A study's files: what is shown, the answers, and the figures that follow from them."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from ft2.critic.annotation import AnswerStore, Given, Item
from ft2.critic.pages import Section, Table, write_page
from ft2.errors import UsageError
from ft2.files import read_json, write_json
from ft2.metrics import study as figures
from ft2.metrics.clips import find_clips, match
from ft2.metrics.config import StudyConfig
from ft2.metrics.papers import STUDY, STUDY_GAINS
from ft2.metrics.tables import estimate

FILE, ANSWERS = "study.json", "answers.sqlite"


def build(folders: Mapping[str, Path], config: StudyConfig, place: Path) -> dict[str, Any]:
    """Return what the study shows; kept in ``study.json``, which a later call must agree with.

    Raises:
        UsageError: No clips, folders that do not match, or a study of other clips in that place.
    """
    sets = {name: find_clips(path, config.condition) for name, path in folders.items()}
    sets = {name: [e for e in entries if e.path] for name, entries in sets.items()}
    first, *others = sets
    for other in others:
        match(sets[first], sets[other])
    clips = {
        str(entry.path.resolve()): {"method": name, "condition": entry.key}
        for name, entries in sets.items() for entry in entries if entry.path
    }  # fmt: skip
    if len(clips) < sum(len(entries) for entries in sets.values()):
        raise UsageError("two methods share a folder", "give each method its own clips")
    if config.mode == "scores":
        items = [[path] for path in clips]
    else:
        items = [
            [str(a.path and a.path.resolve()), str(b.path and b.path.resolve())]
            for one, two in combinations(sets, 2) for a, b in match(sets[one], sets[two])
        ]  # fmt: skip
    made = {"schema": 1, "methods": list(sets), "clips": clips, "items": items,
            "config": config.model_dump(mode="json")}  # fmt: skip
    if (place / FILE).is_file() and read_json(place / FILE) != made:
        raise UsageError(f"'{place}' holds a study of other clips or settings",
                         "choose another --study, or repeat the first command")  # fmt: skip
    write_json(place / FILE, made)
    return made


def open_store(place: Path, made: Mapping[str, Any]) -> AnswerStore:
    """Return the answers of a study, with its items."""
    config = StudyConfig.model_validate(made["config"])
    store = AnswerStore(
        place / ANSWERS, tuple(config.questions), config.raters_per_clip,
        clip_words=figures.SCALE, release_minutes=0,
    )  # fmt: skip
    store.add(Item(*paths) for paths in made["items"])
    return store


def summarise(place: Path, base: str | None) -> dict[str, Any]:
    """Return all figures of a study.

    Raises:
        UsageError: There is no study, nobody answered yet, or no such method.
    """
    if not (place / FILE).is_file():
        raise UsageError(
            f"there is no study in '{place}'", "start one: ft2 study serve A=DIR B=DIR"
        )
    made = read_json(place / FILE)
    store = open_store(place, made)
    votes = [_vote(given, made["clips"]) for given in store.given()]
    if not votes:
        raise UsageError(f"nobody has rated anything in '{place}' yet", "open the page and rate")
    config = StudyConfig.model_validate(made["config"])
    base = base or made["methods"][0]
    if base not in made["methods"]:
        raise UsageError(f"no method '{base}'", f"choose one of {', '.join(made['methods'])}")
    shown = [_shown(paths, made["clips"]) for paths in made["items"]]
    result: dict[str, Any] = {
        "mode": config.mode, "base": base, "dimensions": list(config.questions),
        "coverage": figures.coverage(votes, shown, config.raters_per_clip, len(config.questions)),
        "agreement_alpha": figures.agreement(votes),
    }  # fmt: skip
    if config.mode == "pairs":
        return result | {"win_rates": figures.win_rates([_over(v, base) for v in votes])}
    return result | {"means": figures.means(votes), "gains": figures.gains(votes, base)}


def _shown(paths: list[str], clips: Mapping[str, Any]) -> tuple[str, str]:
    first = min((clips[path] for path in paths), key=lambda clip: clip["method"])
    return first["condition"], first["method"]


def _vote(given: Given, clips: Mapping[str, Any]) -> figures.Vote:
    """Return an answer as a vote, free of the sides on which the clips were shown."""
    clip = clips[given.clip]
    if given.other is None:
        value, other = float(given.answer), None
    else:
        value, other = {"A": 1.0, "B": 0.0, "tie": 0.5}[given.answer], clips[given.other]
        if clip["method"] > other["method"]:
            clip, other, value = other, clip, 1.0 - value
    against = None if other is None else other["method"]
    return figures.Vote(
        given.rater, clip["condition"], given.dimension, clip["method"], value, against
    )


def _over(vote: figures.Vote, base: str) -> figures.Vote:
    """Return a vote about a pair with the base as the other method."""
    if vote.method != base or vote.other is None:
        return vote
    return figures.Vote(
        vote.rater, vote.condition, vote.dimension, vote.other, 1.0 - vote.value, vote.method
    )


def write_report(place: Path, result: Mapping[str, Any]) -> None:
    """Write ``report.json`` and ``report.html``."""
    write_json(place / "report.json", result)
    sections = [
        Section(title, text, [Table(head, rows)]) for title, text, head, rows in _tables(result)
    ]
    write_page(place / "report.html", "User study", _lead(result), sections)


def _lead(result: Mapping[str, Any]) -> str:
    seen = result["coverage"]
    text = (f"{seen['raters']} people, {seen['answers']} answers, {seen['items']} "
            f"{'pairs' if result['mode'] == 'pairs' else 'clips'}; every one was rated by at least "
            f"{seen['least']}. Intervals are 95 % bootstraps over clips.")  # fmt: skip
    if seen["short"]:
        text += (f" {len(seen['short'])} have fewer than the {seen['wanted']} raters wanted, such "
                 f"as {seen['short'][0]}: the study is not finished.")  # fmt: skip
    return text


def _tables(result: Mapping[str, Any]) -> list[tuple[str, str, list[str], list[list[str]]]]:
    dimensions = list(result["dimensions"])

    def rows(found: Mapping[str, Any], signed: bool = False) -> list[list[str]]:
        return [[name, *(estimate(cells.get(d), signed) for d in dimensions)]
                for name, cells in found.items()]  # fmt: skip

    alpha = [["", *(estimate({"value": result["agreement_alpha"].get(d)}) for d in dimensions)]]
    end = [("Agreement of raters", "Krippendorff's alpha, interval scale; 1 full, 0 chance.",
            ["", *dimensions], alpha)]  # fmt: skip
    known = ", ".join(f"{d} {g:.1%}" for d, g in STUDY_GAINS.items())
    gain_note = f"FantasyTalking2 states {known} (a review; over whom is not stated)."
    if result["mode"] == "pairs":
        text = "Share of answers that preferred the first, ties one half."
        return [("Win rates", text, ["", *dimensions], rows(result["win_rates"])), *end]
    paper = [[name, *(f"{v:.2f}" for v in values.values())] for name, values in STUDY.rows.items()]
    return [
        ("Mean scores", "0 worst, 10 best.", ["method", *dimensions], rows(result["means"])),
        (f"Relative gains over {result['base']}",
         f"Mean over the base's mean, less 1. {gain_note}", ["method", *dimensions],
         rows(result["gains"], signed=True)),
        *end,
        ("Beside it", f"{STUDY.source}, {STUDY.title} ({STUDY.confidence}): other clips, people.",
         ["method", *STUDY.columns], paper),
    ]  # fmt: skip


def table_text(result: Mapping[str, Any]) -> str:
    """Return the figures for a terminal."""
    lines = [_lead(result)]
    for title, text, head, rows in _tables(result):
        wide = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines += ["", f"{title}. {text}"]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, wide, strict=True)).rstrip()
                  for row in [head, *rows]]  # fmt: skip
    return "\n".join(lines)
