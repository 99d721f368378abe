"""The dataset card: YAML that `datasets.load_dataset` reads, and a body made from counted facts."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ft2.nsq.config import NsqConfig
from ft2.pairs import DIMENSIONS

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def render_card(config: NsqConfig, manifest: Mapping[str, Any], stats: Mapping[str, Any]) -> str:
    """Return the text of README.md.

    Args:
        config: The build's config.
        manifest: As in manifest.json; its tables give splits and files.
        stats: Counted facts, as in result.json.
    """
    head = yaml.safe_dump(_front_matter(config, manifest), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n{_body(config, manifest, stats)}"


def _front_matter(config: NsqConfig, manifest: Mapping[str, Any]) -> dict[str, Any]:
    num_pairs = sum(t["rows"] for t in manifest["tables"] if t["table"] == "pairs")
    size = next((name for limit, name in _SIZES if num_pairs < limit), "n>1M")
    return {
        "pretty_name": config.card.pretty_name,
        "license": config.card.license,
        "language": list(config.card.language),
        "size_categories": [size],
        "task_categories": ["video-classification"],
        "tags": ["preference", "reward-modeling", "talking-head", "lip-sync", "dpo"],
        "annotations_creators": ["machine-generated"],
        "configs": [
            {
                "config_name": table,
                **({"default": True} if table == "pairs" else {}),
                "data_files": [
                    {"split": t["split"], "path": f"data/{table}/{t['split']}-*.arrow"}
                    for t in manifest["tables"]
                    if t["table"] == table
                ],
            }
            for table in ("pairs", "clips")
            if any(t["table"] == table for t in manifest["tables"])
        ],
    }


def _body(config: NsqConfig, manifest: Mapping[str, Any], stats: Mapping[str, Any]) -> str:
    pairing = config.pairing
    how = "the median score of a split's clips" if pairing.yes_from == "median" else "P(yes)"
    limits = "; ".join(
        f"{row['split']}: " + ", ".join(f"{d} {row['yes_from'][d]:.3g}" for d in DIMENSIONS)
        for row in stats["splits"]
    )
    return f"""# {config.card.pretty_name}

Preference pairs of talking-portrait clips along three dimensions: motion naturalness, lip
synchronisation, visual quality. A dataset in the form of FantasyTalking2's Talking-NSQ.

## How the labels were made

Machine labels, no people: for each condition (portrait, speech, prompt) the generator
`{manifest["generator"]}` made {config.num_candidates} clips; the critic `{manifest["critic"]}`
answered Yes or No per dimension (Yes from {how}, {limits}). On each dimension Yes beats No; equal
answers make no pair. At most {pairing.max_per_condition} pairs of a condition in one store
({pairing.prefer}), least margin {pairing.min_margin:g}.

{_table(stats["splits"])}

Clips: {stats["num_clips"]}; dropped because they could not be decoded in the format: {
        stats["num_dropped"]
    }.
A wins on {_shares(stats["position_a"])} of the pairs of motion, lip, quality (position balance).

## Use

```python
from datasets import load_dataset

pairs = load_dataset("THIS_DIRECTORY", "pairs", split="train")
clips = load_dataset("THIS_DIRECTORY", "clips", split="train")
lip = pairs.filter(lambda row: row["in_lip"])  # label_lip: 0 = A is better, 1 = B, 2 = tie
```

`in_motion`, `in_lip`, `in_quality`, `in_fusion` name the stores that use a pair; those of `fusion` are
Yes-Yes-Yes against No-No-No. `clip_a` and `clip_b` are `clip_id`s of the table `clips`.
Splits share no identity and no speech track.

## Limits

The labels carry the critic's errors; do not report a critic's accuracy on them. Consent:
{config.card.consent}
"""


def _table(splits: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| split | conditions | clips | pairs | motion | lip | quality | all three |",
        "|---|---|---|---|---|---|---|---|",
    ]
    keys = ("split", "conditions", "clips", "pairs", "motion", "lip", "quality", "fusion")
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in splits]
    return "\n".join(lines)


def _shares(values: Mapping[str, float | None]) -> str:
    return ", ".join("-" if values[d] is None else f"{values[d]:.1%}" for d in DIMENSIONS)
