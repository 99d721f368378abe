"""The dataset card: YAML that `datasets.load_dataset` reads, and a body made from counted facts."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ft2.nsq.config import CardConfig
from ft2.nsq.stats_page import origin
from ft2.pairs import DIMENSIONS, STORES

REQUIRED = (
    "license",
    "consent",
    "portraits_license",
    "voices_license",
    "critic_accuracy",
    "biases",
)
"""Facts without which a dataset is not published."""

MISSING = "NOT STATED"
"""What the card says where a required fact is missing; a push refuses such a card."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def required(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the facts that a card must state; a critic's accuracy only where one gave labels."""
    judged = manifest.get("label_source", "critic") == "critic"
    return tuple(name for name in REQUIRED if judged or name != "critic_accuracy")


def render_card(
    card: CardConfig,
    manifest: Mapping[str, Any],
    stats: Mapping[str, Any],
    infos: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the text of README.md.

    Args:
        card: Facts that no file can tell.
        manifest: As in manifest.json; its tables give splits and files.
        stats: Counted facts, as in stats.json.
        infos: `dataset_info` of every config, for the Hub.
    """
    head = front_matter(card.model_dump(), manifest)
    if infos:
        head["dataset_info"] = list(infos)
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n\n{_body(card, manifest, stats)}"


def front_matter(card: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card's YAML; every table with rows is a config, `pairs` the default one."""
    num_pairs = sum(t["rows"] for t in manifest["tables"] if t["table"] == "pairs")
    size = next((name for limit, name in _SIZES if num_pairs < limit), "n>1M")
    return {
        "pretty_name": card["pretty_name"],
        **({"license": card["license"]} if card["license"] else {}),
        "language": list(card["language"]),
        "size_categories": [size],
        "task_categories": ["video-classification"],
        "tags": ["preference", "reward-modeling", "talking-head", "lip-sync", "dpo"],
        "annotations_creators": ["machine-generated"],
        "source_datasets": ["original"],
        "configs": [
            {
                "config_name": table,
                **({"default": True} if table == "pairs" else {}),
                "data_files": [
                    {"split": t["split"], "path": f"data/{table}/{t['split']}-*"}
                    for t in manifest["tables"]
                    if t["table"] == table and t["rows"]
                ],
            }
            for table in ("pairs", "clips", *STORES)
            if any(t["table"] == table and t["rows"] for t in manifest["tables"])
        ],
    }


def _body(card: CardConfig, manifest: Mapping[str, Any], stats: Mapping[str, Any]) -> str:
    facts = {name: getattr(card, name) or MISSING for name in REQUIRED}
    return f"""# {card.pretty_name}

Preference pairs of talking-portrait clips along three dimensions: motion naturalness, lip
synchronisation, visual quality. A dataset in the form of FantasyTalking2's Talking-NSQ.

**{origin(manifest)}**

## How the labels were made

{_how(manifest, stats, facts)}

{_table(stats["splits"])}

| split | A wins (motion, lip, quality) | ties among pairs | dimensions that disagree |
|---|---|---|---|
{_balance(stats["splits"])}

Candidates: {stats["num_candidates"]}; clips: {stats["num_clips"]}. Dropped before pairing:

{_drops(stats["dropped"])}

Filters: {_filters(manifest["config"])}.

## Use

```python
from datasets import load_dataset

clips = load_dataset("THIS_DATASET", "clips", split="train")
lip = load_dataset("THIS_DATASET", "lip", split="train")  # motion, lip, quality, fusion
better, worse = clips[lip[0]["chosen_row"]]["video"], clips[lip[0]["rejected_row"]]["video"]
```

The table `pairs` has clips A and B with a label per dimension (0: A is better, 1: B, 2: tie); the
views `motion`, `lip`, `quality` and `fusion` have `chosen` and `rejected`, and `fusion` those pairs
whose chosen clip wins on all three. `clip_id` is the sha256 of the mp4 file. Splits share no
identity, source clip, sound, prompt or portrait; `test_unique` has one pair of each prompt of
`test`. Use `test` for measuring only.

## Limits

{_warning(manifest)} Known biases: {facts["biases"]}

Do not use the clips to imitate a person without consent, to deceive, or to identify anyone.

## Consent and licences

{facts["consent"]}

- Portraits: {facts["portraits_license"]}
- Voices: {facts["voices_license"]}
- This dataset: {facts["license"]}
"""


def _how(manifest: Mapping[str, Any], stats: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    if "imported" in manifest:
        taken = manifest["imported"]
        refused = f"; {taken['refused']} rows were refused" if taken["refused"] else ""
        return (
            f"{taken['rows']} rows of a collection in the format {taken['format']} were imported "
            f"({', '.join(taken['dimensions'])}){refused}. Clips that meet in pairs count as one "
            "condition; a portrait or sound that the collection does not give is taken from its "
            "clips."
        )
    models = ", ".join(f"`{name}`" for name in manifest["models"]) or "no model"
    rule = _rule(manifest["config"]["pairing"], stats)
    return f"""For each condition (portrait, sound, prompt) clips were taken from {models};
the critic `{manifest["critic"]}` gave P(yes) for each dimension. {rule}

Accuracy of the critic: {facts["critic_accuracy"]}"""


def _warning(manifest: Mapping[str, Any]) -> str:
    if manifest.get("label_source", "critic") == "critic":
        return (
            "The labels carry the critic's errors; do not report a critic's accuracy on them, and "
            "do not call them human preferences."
        )
    return "Labels are as the collection gives them."


def _rule(pairing: Mapping[str, Any], stats: Mapping[str, Any]) -> str:
    limits = "; ".join(
        f"{row['split']}: " + ", ".join(f"{d} {row['yes_from'][d]:.3g}" for d in DIMENSIONS)
        for row in stats["splits"]
    )
    if pairing["by"] == "answers":
        origin = "the median of a split" if pairing["yes_from"] == "median" else "fixed"
        how = f"On each dimension Yes beats No; equal answers make no pair. Yes from ({origin}) "
        how += f"{limits}."
    else:
        how = "On each dimension the clip with the higher P(yes) wins."
    chosen = "widest margins first" if pairing["prefer"] == "margin" else "a seeded choice"
    cap = f"at most {pairing['max_per_condition']} pairs of a condition in one store, {chosen}"
    if pairing["pairs"] == "best_worst":
        cap = "of each condition and store the best clip against the worst"
    return f"{how} Least margin {pairing['min_margin']:g}; {cap}."


def _table(splits: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| split | conditions | clips | pairs | motion | lip | quality | fusion |",
        "|---|---|---|---|---|---|---|---|",
    ]
    keys = ("split", "conditions", "clips", "pairs", *STORES)
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in splits]
    return "\n".join(lines)


def _balance(splits: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in splits:
        conflicts = ", ".join(
            f"{couple} {c['oppose']} of {c['agree'] + c['oppose']}"
            for couple, c in row["conflicts"].items()
        )
        shares = (_shares(row["position_a"]), _shares(row["tie_rate"]))
        lines.append(f"| {row['split']} | {' | '.join(shares)} | {conflicts} |")
    return "\n".join(lines)


def _drops(dropped: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(f"- {row['reason']}: {row['count']}" for row in dropped) or "- none"


def _filters(config: Mapping[str, Any]) -> str:
    used = [f"{k} {v}" for k, v in config["filters"].items() if v is not None and v is not False]
    clip = config.get("clip")
    if clip is not None:
        size = f"{clip['width']}x{clip['height']}, {clip['num_frames']} frames"
        used.insert(0, f"{size} at {clip['fps']:g} fps")
    return ", ".join(used) or "every clip decodes and has sound"


def _shares(values: Mapping[str, float | None]) -> str:
    return ", ".join("-" if values[d] is None else f"{values[d]:.1%}" for d in DIMENSIONS)
