"""Plans: caps, turns of the identities, order, splits, and what is wrong with a list."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ft2.cli.nsq import app
from ft2.errors import UsageError
from ft2.nsq.plan import PlanConfig, expand, write_conditions
from ft2.pairs import read_conditions


def lists(folder: Path, faces: dict[str, int], sounds: dict[str, int], flip: bool = False) -> None:
    """Write both lists: how many faces and sounds each split has."""
    for file, name, path, counts in (
        ("portraits.jsonl", "identity_id", "portrait", faces),
        ("sounds.jsonl", "audio_id", "audio", sounds),
    ):
        rows = []
        for split, count in counts.items():
            for i in range(count):
                (folder / f"{split}{name}{i}").touch()
                rows.append({name: f"{split}-{i}", path: f"{split}{name}{i}", "split": split})
        rows = rows[::-1] if flip else rows
        (folder / file).write_text("".join(json.dumps(r) + "\n" for r in rows))


def config(folder: Path, **values: object) -> PlanConfig:
    files = {"portraits": str(folder / "portraits.jsonl"), "sounds": str(folder / "sounds.jsonl")}
    return PlanConfig.model_validate({**files, **values})


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 40))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_caps_hold_and_identities_take_turns(
    tmp_path: Path, faces: int, sounds: int, prompts: int, cap: int
) -> None:
    lists(tmp_path, {"train": faces}, {"train": sounds})
    texts = [f"prompt {i}" for i in range(prompts)]
    found = expand(config(tmp_path, prompts={"train": texts}, max_conditions={"train": cap}))
    assert len(found) == min(cap, faces * sounds * prompts)
    assert len({(c.identity_id, c.audio_id, c.prompt) for c in found}) == len(found)
    counts = Counter(c.identity_id for c in found)
    if cap >= faces:
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len(counts) == faces


def test_order_of_the_lists_does_not_matter_and_the_seed_does(tmp_path: Path) -> None:
    plan = {"max_conditions": {"train": 7}}
    lists(tmp_path, {"train": 3}, {"train": 9})
    first = expand(config(tmp_path, **plan))
    lists(tmp_path, {"train": 3}, {"train": 9}, flip=True)
    assert expand(config(tmp_path, **plan)) == first
    assert expand(config(tmp_path, seed=1, **plan)) != first


def test_only_combinations_within_a_split(tmp_path: Path) -> None:
    lists(tmp_path, {"train": 2, "test": 3}, {"train": 4, "test": 1})
    found = expand(config(tmp_path, max_per_identity=3))
    assert Counter(c.split for c in found) == {"train": 6, "test": 3}
    assert all(c.audio_id.startswith(c.split) for c in found)


def test_written_conditions_are_read_back(tmp_path: Path) -> None:
    lists(tmp_path, {"train": 2}, {"train": 2})
    found = expand(config(tmp_path))
    write_conditions(found, tmp_path / "deep" / "conditions.jsonl")
    again = read_conditions(tmp_path / "deep" / "conditions.jsonl")
    assert [c.condition_id for c in again] == [c.condition_id for c in found]
    assert [c.portrait.resolve() for c in again] == [c.portrait.resolve() for c in found]
    assert str(tmp_path) not in (tmp_path / "deep" / "conditions.jsonl").read_text()


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("portraits", {"identity_id": "x", "split": "train"}, r"portraits.jsonl:3: wrong fields"),
        ("portraits", {"identity_id": "x", "portrait": "no", "split": "train"}, "no portrait file"),
        ("sounds", {"audio_id": 3, "audio": "x", "split": "train"}, "audio_id is 3, not a text"),
        ("portraits", {"identity_id": "x", "portrait": "f", "split": "test"}, "no sound is in"),
    ],
)
def test_broken_lists_are_named(
    tmp_path: Path, file: str, row: dict[str, object], message: str
) -> None:
    lists(tmp_path, {"train": 2}, {"train": 2})
    (tmp_path / "f").touch()
    with (tmp_path / f"{file}.jsonl").open("a") as out:
        out.write(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match=message):
        expand(config(tmp_path))


def test_source_clip_of_two_splits_and_unknown_split_are_refused(tmp_path: Path) -> None:
    lists(tmp_path, {"train": 1, "test": 1}, {"train": 1, "test": 1})
    with pytest.raises(UsageError, match="name the split 'dev'"):
        expand(config(tmp_path, max_conditions={"dev": 3}))
    with pytest.raises(UsageError, match="prompt 'the same' is in the splits"):
        expand(config(tmp_path, prompts={"train": ["the same"], "test": ["the same"]}))
    for file in ("portraits", "sounds"):
        path = tmp_path / f"{file}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[0 if file == "sounds" else 1]["source_id"] = "film-1"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="source_id 'film-1' is in test, train"):
        expand(config(tmp_path))


def test_command_counts_and_writes(tmp_path: Path) -> None:
    lists(tmp_path, {"train": 2}, {"train": 2})
    words = ["plan", f"portraits={tmp_path / 'portraits.jsonl'}", "-o", str(tmp_path / "new")]
    words += [f"sounds={tmp_path / 'sounds.jsonl'}", "--json"]
    result = CliRunner().invoke(app, [*words, "-n"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["splits"][0]["per_identity"] == [2, 2]
    assert not (tmp_path / "new").exists()
    assert CliRunner().invoke(app, words).exit_code == 0
    assert len(read_conditions(tmp_path / "new" / "conditions.jsonl")) == 4
    assert isinstance(CliRunner().invoke(app, words).exception, UsageError)
