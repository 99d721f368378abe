"""Exports are read back with other readers and give the same pairs."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ft2.cli.nsq import app
from ft2.critic.importers import FORMATS as IMPORTERS
from ft2.errors import UsageError
from ft2.nsq.export import FORMATS, export
from ft2.pairs import Preference, Store, read_pairs

Triple = tuple[str, str, str]
"""Hashes of the chosen and the rejected video, and the prompt."""


def expected(dataset: Path, store: Store) -> list[Triple]:
    def triple(pair: Preference) -> Triple:
        return pair.chosen.clip_id, pair.rejected.clip_id, pair.chosen.prompt

    return [triple(pair) for pair in read_pairs(dataset, store)]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def by_importer(name: str, folder: Path, rows: list[dict[str, object]]) -> list[Triple]:
    """Read rows with the critic's importer, which refuses every word it does not know."""
    found = []
    for row in rows:
        (answer,) = list(IMPORTERS[name](row))
        assert not isinstance(answer, str), answer
        a, b = ((folder / str(p)).read_bytes() for p in (answer.clip, answer.other))
        sides = (digest(a), digest(b)) if answer.answer == "A" else (digest(b), digest(a))
        found.append((*sides, answer.prompt))
    return found


def read_back(kind: str, folder: Path) -> list[Triple]:
    if kind == "trl":
        lines = (folder / "train.jsonl").read_text().splitlines()
        return by_importer("trl", folder, [json.loads(line) for line in lines])
    if kind == "videoalign":
        import csv

        with (folder / "pairs.csv").open() as file:
            return by_importer("videoalign", folder, list(csv.DictReader(file)))
    if kind == "genai-bench":
        rows = json.loads((folder / "data.json").read_text())
        return by_importer("genai-bench", folder, rows)
    if kind == "ms-swift":
        found = []
        for line in (folder / "train.jsonl").read_text().splitlines():
            row = json.loads(line)
            assert row["messages"][1]["content"] == "Yes."
            assert all((folder / p).stat().st_size for p in row["audios"] + row["rejected_audios"])
            a, b = ((folder / row[k][0]).read_bytes() for k in ("videos", "rejected_videos"))
            found.append((digest(a), digest(b), ""))
        return found
    if kind == "parquet":
        rows = pq.read_table(folder / "pairs.parquet").to_pylist()
        return [
            (digest(r["chosen"]["bytes"]), digest(r["rejected"]["bytes"]), r["prompt"])
            for r in rows
        ]
    found = []
    with tarfile.open(folder / "00000.tar") as tar:
        samples: dict[str, dict[str, bytes]] = {}
        for member in tar:
            key, _, name = member.name.partition(".")
            file = tar.extractfile(member)
            assert isinstance(file, io.BufferedReader)
            samples.setdefault(key, {})[name] = file.read()
    for sample in samples.values():
        prompt = json.loads(sample["json"])["prompt"]
        assert sample["flac"][:4] == b"fLaC"
        found.append((digest(sample["chosen.mp4"]), digest(sample["rejected.mp4"]), prompt))
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_export_read_back_gives_the_same_pairs(dataset: Path, tmp_path: Path, kind: str) -> None:
    store: Store = "quality"
    report = export(dataset, store, "train", kind, tmp_path / "x")
    wanted = expected(dataset, store)
    if kind == "ms-swift":
        wanted = [(a, b, "") for a, b, _ in wanted]
    assert read_back(kind, tmp_path / "x") == wanted
    assert report["pairs"] == len(wanted) > 3


def test_sides_of_a_bench_stay_balanced(dataset: Path, tmp_path: Path) -> None:
    export(dataset, "lip", "train", "genai-bench", tmp_path / "x")
    votes = [r["vote_type"] for r in json.loads((tmp_path / "x" / "data.json").read_text())]
    assert {"leftvote", "rightvote"} == set(votes)


def test_bad_requests_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown format 'csv'"):
        export(dataset, "lip", "train", "csv", tmp_path / "x")
    with pytest.raises(UsageError, match="unknown dimension 'lips'"):
        export(dataset, "lips", "train", "trl", tmp_path / "x")  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
    (tmp_path / "x").mkdir()
    with pytest.raises(UsageError, match="already exists"):
        export(dataset, "lip", "train", "trl", tmp_path / "x")
    words = ["export", str(dataset), "trl", "--dimension", "motion", "-o", str(tmp_path / "y")]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["format"] == "trl"
