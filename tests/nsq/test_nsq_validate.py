"""A sound dataset has no problems; each kind of damage is found and named."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from ft2.cli.nsq import app
from ft2.errors import RunError, UsageError
from ft2.nsq.validate import validate
from ft2.runs import hash_file, read_json, write_json


def rewrite(dataset: Path, name: str, change: Callable[[list[dict[str, object]]], None]) -> None:
    """Change the rows of a shard and make the manifest agree with the new file."""
    path = next((dataset / "data").glob(name))
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_stream(source).read_all()
    rows = table.to_pylist()
    change(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=table.schema))
    manifest = read_json(dataset / "manifest.json")
    for entry in manifest["tables"]:
        for shard in entry["shards"]:
            if dataset / shard["path"] == path:
                shard |= {
                    "rows": len(rows),
                    "bytes": path.stat().st_size,
                    "sha256": hash_file(path),
                }
    write_json(dataset / "manifest.json", manifest)


def set_first(**values: object) -> Callable[[list[dict[str, object]]], None]:
    return lambda rows: rows[0].update(values)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_sound_dataset_has_no_problems(dataset: Path) -> None:
    report = validate(dataset, "all")
    assert report["problems"] == []
    assert (report["clips"], report["pairs"]) == (
        30, sum(s["pairs"] for s in read_json(dataset / "stats.json")["splits"]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "words"),
    [(flip, "is damaged"), (truncate, "the manifest says"), (Path.unlink, "is missing")],
)
def test_flipped_byte_truncated_file_and_missing_shard_are_named(
    dataset: Path, damage: Callable[[Path], None], words: str
) -> None:
    path = next((dataset / "data" / "clips").glob("train-00001-*"))
    damage(path)
    problems = validate(dataset, "none")["problems"]
    assert len(problems) == 1
    assert path.relative_to(dataset).as_posix() in problems[0]
    assert words in problems[0]


def test_stray_file_is_named(dataset: Path) -> None:
    path = next((dataset / "data" / "pairs").glob("train-*"))
    path.with_name("train-extra.arrow").write_bytes(path.read_bytes())
    (problem,) = validate(dataset, "none")["problems"]
    assert "train-extra.arrow is not in the manifest" in problem


@pytest.mark.parametrize(
    ("shard", "change", "words"),
    [
        ("pairs/train-00000*", set_first(clip_a="f" * 64), r"\(clip_a\) names 1 clips .* ffff"),
        ("pairs/train-00000*", set_first(pair_id="0" * 64), "not the hash of its clips"),
        ("pairs/train-00000*", set_first(label_lip=7), "label_lip has values outside"),
        ("pairs/train-00000*", set_first(score_a_lip=float("nan")), "scores of lip outside"),
        ("lip/train-00000*", set_first(chosen_row=5000), "points outside"),
        ("lip/train-00000*", set_first(rejected="f" * 64), "not the same clip"),
        ("lip/train-00000*", set_first(margin=-0.5), "the lower score"),
        ("clips/dev-*", set_first(identity_id="face0"), "'face0' is in the splits dev, train"),
        ("clips/dev-*", set_first(score_lip=1.5), "score_lip outside"),
        ("clips/dev-*", set_first(video={"bytes": b"x", "path": "x"}), "not the one of its id"),
        ("clips/dev-*", set_first(num_frames=9), r"has the shape \(5, 32, 32\)"),
        ("clips/dev-*", lambda rows: rows.append(rows[0]), "1 clip_ids are there twice"),
    ],
)
def test_wrong_rows_are_named(
    dataset: Path, shard: str, change: Callable[[list[dict[str, object]]], None], words: str
) -> None:
    import re

    rewrite(dataset, shard, change)
    problems = "\n".join(validate(dataset, "all")["problems"])
    assert re.search(words, problems), problems
    if not shard.startswith("lip"):
        assert "dataset_hash differs" in problems or "video" in words or "id" in words


def test_command_exits_1_with_the_list(dataset: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["validate", str(dataset), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["problems"] == []
    flip(next((dataset / "data" / "lip").glob("train-*")))
    result = runner.invoke(app, ["validate", str(dataset)])
    assert isinstance(result.exception, RunError)
    assert "is damaged" in result.stdout
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        validate(dataset / "data")
    result = runner.invoke(app, ["validate", str(dataset), "--decode", "some"])
    assert isinstance(result.exception, UsageError)


def test_directory_of_another_schema_is_refused(dataset: Path) -> None:
    manifest = read_json(dataset / "manifest.json")
    write_json(dataset / "manifest.json", manifest | {"schema": 99})
    with pytest.raises(UsageError, match="has schema 99"):
        validate(dataset)


def test_plan_lists_what_is_missing_and_ends_well(tmp_path: Path) -> None:
    """`ft2 nsq build -n` on a new machine: nothing is there, and that is what it says."""
    command = [sys.executable, "-m", "ft2", "nsq", "build", "nano/nsq", "-n", "--json", "-o", "new"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    missing = json.loads(done.stdout)["missing"]
    assert list(missing) == ["conditions", "critic"]
    done = subprocess.run(
        [*command, "critic=other"], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # what the user names must be there
    assert done.returncode == 2
    assert "conditions" in json.loads(done.stdout)["missing"]
    assert done.stderr.startswith("error: the critic other does not exist")
    done = subprocess.run(
        [*command[:5], "nano/nsq", "-o", "new"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: the conditions runs/conditions" in done.stderr
    assert not list(tmp_path.iterdir())
