"""`ft2 nsq import`: exports come back as they were, foreign rows under strict vocabularies."""

import csv
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from nsq_fakes import CLIP, coloured_clip
from typer.testing import CliRunner

from ft2.cli.nsq import app
from ft2.errors import UsageError
from ft2.media import write_video
from ft2.nsq.export import FORMATS
from ft2.nsq.validate import validate
from ft2.pairs import read_pair_records, read_pairs, read_table
from ft2.runs import read_json

WHOLE = ("parquet", "webdataset")


def run(*words: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    if result.exception:
        raise result.exception
    return dict(json.loads(result.stdout))


def described(dataset: Path, store: str) -> set[tuple[object, ...]]:
    """What every format keeps of a pair."""
    return {
        (p.chosen.clip_id, p.rejected.clip_id, p.chosen.prompt, round(p.margin, 5))
        for p in read_pairs(dataset, store)  # type: ignore[arg-type]
    }


@pytest.mark.parametrize(
    ("kind", "store"),
    [*((kind, "lip") for kind in FORMATS), ("trl", "fusion"), ("videoalign", "fusion")],
)
def test_export_import_export(built: Path, tmp_path: Path, kind: str, store: str) -> None:
    run("export", built, kind, "--dimension", store, "-o", tmp_path / "x")
    found = run("import", kind, tmp_path / "x", "--dimension", store, "-o", tmp_path / "in", "-q")
    wanted = described(built, store)
    assert (found[store], found["refused"]) == (len(wanted), 0)
    assert validate(tmp_path / "in", "all")["problems"] == []
    got = described(tmp_path / "in", store)
    if kind == "ms-swift":
        wanted = {(a, b, "", margin) for a, b, _, margin in wanted}
    if kind in ("videoalign", "genai-bench"):
        wanted, got = {row[:3] for row in wanted}, {row[:3] for row in got}
    assert got == wanted
    run("export", tmp_path / "in", kind, "--dimension", store, "-o", tmp_path / "y")
    again = run("import", kind, tmp_path / "y", "--dimension", store, "-o", tmp_path / "z", "-q")
    assert again == found | {"output": str(tmp_path / "z")}
    hashes = [read_json(tmp_path / name / "manifest.json")["dataset_hash"] for name in ("in", "z")]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("kind", WHOLE)
def test_formats_with_records_lose_nothing(built: Path, tmp_path: Path, kind: str) -> None:
    run("export", built, kind, "--dimension", "quality", "-o", tmp_path / "x")
    run("import", kind, tmp_path / "x", "-o", tmp_path / "in", "-q")
    old = {p.pair_id: p for p in read_pair_records(built) if "quality" in p.stores}
    new = {p.pair_id: p for p in read_pair_records(tmp_path / "in")}
    assert set(old) == set(new)
    for name, pair in new.items():
        assert pair.labels == (None, None, old[name].labels[2])
        assert (pair.clip_a, pair.condition_id) == (old[name].clip_a, old[name].condition_id)
        assert pair.scores_a is not None
        assert pair.scores_a.values() == pytest.approx(old[name].scores_a.values(), abs=1e-6)  # type: ignore[union-attr]
    columns = ["clip_id", "identity_id", "audio_id", "reference_id", "model", "seed", "audio"]
    whole = {
        r["clip_id"]: r for r in read_table(built, "clips", "train").select(columns).to_pylist()
    }
    for row in read_table(tmp_path / "in", "clips", "train").select(columns).to_pylist():
        assert row["audio"]["bytes"] == whole[row["clip_id"]]["audio"]["bytes"]
        assert {**row, "audio": 0} == {**whole[row["clip_id"]], "audio": 0}


def test_labels_of_people_have_no_scores_and_every_command_takes_them(
    built: Path, tmp_path: Path
) -> None:
    run("export", built, "genai-bench", "--dimension", "motion", "-o", tmp_path / "x")
    rows = json.loads((tmp_path / "x" / "data.json").read_text())
    rows[0]["vote_type"] = "tievote"
    (tmp_path / "x" / "data.json").write_text(json.dumps(rows))
    out = tmp_path / "in"
    words = ("genai-bench", tmp_path / "x", "--dimension", "motion", "-o", out, "-q")
    assert run("import", *words)["motion"] == len(rows) - 1
    records = list(read_pair_records(out))
    assert {p.scores_a for p in records} == {None}
    assert sum(p.labels == ("tie", None, None) for p in records) == 1
    assert all(np.isnan(p.margin) for p in read_pairs(out, "motion"))
    table = read_table(out, "pairs", "train")
    for name in ("p_a_motion", "margin_motion", "label_lip", "n_annotators_motion"):
        assert table[name].null_count == len(rows)
    assert set(table["label_source"].to_pylist()) == {0}
    run("stats", out, "--page", tmp_path / "stats.html")
    run("view", out, "-o", tmp_path / "page")
    for page in (tmp_path / "stats.html", tmp_path / "page" / "index.html", out / "README.md"):
        assert "Labels come from people." in page.read_text()
    from ft2.tlpo.data import pair_weights

    margins = [p.margin for p in read_pairs(out, "motion")]
    assert pair_weights(margins, "none", 1.0) is None
    with pytest.raises(UsageError, match=r"have no margin"):
        pair_weights(margins, "confidence", 1.0)


def clips(folder: Path, count: int) -> list[str]:
    names = [f"v{i}.mp4" for i in range(count)]
    for name in names:
        (folder / name).write_bytes(coloured_clip(f"import {name}", 5))
    return names


def test_videoalign_dimensions_of_one_pair_meet_in_one_row(tmp_path: Path) -> None:
    a, b, c, silent = clips(tmp_path, 4)
    write_video(tmp_path / silent, np.zeros((5, 32, 32, 3), np.uint8), CLIP.fps, None)
    rows = [
        # path_A, path_B, prompt, VQ, MQ, TA, MOS_A_VQ, MOS_B_VQ
        (a, f"./{b}", "x", "A", "B", "same", "4.5", "3"),
        (b, c, "x", "same", "22", "A", "", ""),
        (a, c, "x", "B", "B", "A", "4.5", "3"),  # quality contradicts the opinion scores
        (b, a, "x", "A", "A", "A", "", ""),  # the first pair turned, quality says the opposite
        (a, silent, "x", "A", "A", "A", "", ""),
        (a, "nobody.mp4", "x", "A", "A", "A", "", ""),
        (a, c, "y", "A", "A", "A", "", ""),  # another prompt
    ]
    names = ["path_A", "path_B", "prompt", "VQ", "MQ", "TA", "MOS_A_VQ", "MOS_B_VQ"]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    found = run("import", "videoalign", tmp_path / "pairs.csv", "-o", tmp_path / "in", "-q")
    assert (found["motion"], found["lip"], found["quality"]) == (2, 0, 1)
    labels = {p.labels for p in read_pair_records(tmp_path / "in")}
    assert labels == {("B", None, "A"), (None, None, "tie"), ("B", None, None)}
    (quality,) = read_pairs(tmp_path / "in", "quality")
    assert quality.margin == 1.5
    assert quality.chosen.clip_id == hashlib.sha256((tmp_path / a).read_bytes()).hexdigest()
    assert validate(tmp_path / "in", "all")["problems"] == []
    result = CliRunner().invoke(
        app, ["import", "videoalign", str(tmp_path / "pairs.csv"), "-o", str(tmp_path / "again")]
    )
    for text in (
        "MQ is '22', not one of", "lower opinion score", "says otherwise about quality",
        "no sound", "row 6: no such file", "now with ('y'",
    ):  # fmt: skip
        assert text in result.stderr, text


def swift(chosen: str, rejected: str, **more: object) -> dict[str, object]:
    messages = [{"role": "user", "content": "<video>?"}, {"role": "assistant", "content": "Yes."}]
    row = {"messages": messages, "videos": [chosen], "rejected_videos": [rejected]}
    return {**row, "rejected_response": "Yes.", **more}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (swift("v0.mp4", "v0.mp4"), "both clips are the same file"),
        (swift("v0.mp4", "v1.mp4", rejected_response="No."), "prefers a text, not a video"),
        (swift("v0.mp4", "v1.mp4", videos=["v0.mp4", "v1.mp4"]), "not a list of one path"),
        (swift("v0.mp4", "v1.mp4", margin="1"), "margin is '1'"),
        (swift("v0.mp4", "v1.mp4", margin=-0.5), "below 0"),
        (swift("v0.mp4", "v1.mp4", label=1), "unknown: label"),
        ({"videos": ["v0.mp4"]}, "fields missing: messages"),
        ("text", "a row is an object"),
        (swift("v0.mp4", "v1.mp4", audios=["v0.mp4"], rejected_audios=["v1.mp4"]),
         "different sounds"),
    ],
)  # fmt: skip
def test_ms_swift_rows_outside_the_vocabulary(tmp_path: Path, row: object, message: str) -> None:
    clips(tmp_path, 3)
    good = swift("v1.mp4", "v2.mp4", margin=0.25)
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n{{\n")
    words = ("ms-swift", tmp_path / "x.jsonl", "--dimension", "lip", "-o", tmp_path / "in")
    result = CliRunner().invoke(app, ["import", *map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["refused"] == 2
    assert message in result.stderr.split("row 2: ")[1].split("row 3: ")[0]
    assert read_pairs(tmp_path / "in", "lip")[0].margin == 0.25


def test_records_with_strange_words_and_broken_files(built: Path, tmp_path: Path) -> None:
    run("export", built, "webdataset", "--dimension", "lip", "-o", tmp_path / "x")
    source = tmp_path / "x" / "00000.tar"
    with tarfile.open(source) as old, tarfile.open(tmp_path / "x" / "new.tar", "w") as new:
        for number, member in enumerate(old):
            data = old.extractfile(member).read()  # type: ignore[union-attr]
            if member.name.endswith(".json") and number < 12:
                change = {"store": "lips"} if number < 6 else {"better": "C"}
                data = json.dumps(json.loads(data) | change).encode()
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    source.unlink()
    total = len(read_pairs(built, "lip"))
    found = run("import", "webdataset", tmp_path / "x", "-o", tmp_path / "in", "-q")
    assert (found["lip"], found["refused"]) == (total - 2, 2)
    with pytest.raises(UsageError, match=r"no row could be imported(.|\n)*of lip, not of motion"):
        run("import", "webdataset", tmp_path / "x", "--dimension", "motion", "-o", tmp_path / "y")
    assert not (tmp_path / "y").exists()
    new_tar = tmp_path / "x" / "new.tar"
    new_tar.write_bytes(b"no tar at all")
    with pytest.raises(UsageError, match="cannot read"):
        run("import", "webdataset", new_tar, "-o", tmp_path / "y")
    run("export", built, "parquet", "--dimension", "lip", "-o", tmp_path / "p")
    table = pq.read_table(tmp_path / "p" / "pairs.parquet")
    pq.write_table(table.append_column("x", [["?"] * len(table)]), tmp_path / "p" / "pairs.parquet")
    with pytest.raises(UsageError, match=r"row 1: .*unknown: x"):
        run("import", "parquet", tmp_path / "p", "-o", tmp_path / "y")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trl", "x"], r"trl does not say what its labels are about"),
        (["trl", "x", "--dimension", "lips"], "--dimension lips is unknown"),
        (["trl", "nothing", "--dimension", "lip"], "there is no nothing"),
        (["csv", "x", "--dimension", "lip"], "unknown format 'csv'"),
        (["trl", "x", "--dimension", "lip", "--split", "test_unique"], "is no split"),
        (["trl", "x", "--dimension", "lip", "--label-source", "me"], "--label-source me"),
    ],
)
def test_bad_words_are_refused(
    built: Path, tmp_path: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("export", built, "trl", "--dimension", "lip", "-o", "x")
    with pytest.raises(UsageError, match=message):
        run("import", *words, "-o", "in")
    assert not Path("in").exists()
    assert run("import", "trl", "x", "--dimension", "lip", "-o", "in", "-n")["rows"] > 3
    assert not Path("in").exists()
    shutil.rmtree("x")
