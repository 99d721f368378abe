import hashlib
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ft2.errors import UsageError
from ft2.files import (
    atomic_dir,
    hash_file,
    load_tensors,
    read_json,
    read_lines,
    save_tensors,
    write_atomic,
    write_json,
)


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "sub" / "a.txt"
    write_atomic(path, "old")
    write_atomic(path, "né")
    assert path.read_bytes() == "né".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def fail(_handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_follow_the_umask(tmp_path: Path):
    write_atomic(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "b").stat().st_mode
    )


def test_json_keeps_order_and_has_no_nan(tmp_path: Path):
    path = tmp_path / "a.json"
    value = {"b": float("nan"), "a": [1.5, (float("inf"), "ü")], "n": np.int64(3)}
    write_json(path, value | {"t": [torch.tensor(0.5), np.float32("nan")]})
    assert list(read_json(path).items()) == [
        ("b", None),
        ("a", [1.5, [None, "ü"]]),
        ("n", 3),
        ("t", [0.5, None]),
    ]
    assert "NaN" not in path.read_text()


def test_broken_json_names_the_file(tmp_path: Path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UsageError, match=r"a\.json"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UsageError, match=r"none\.json"):
        read_json(tmp_path / "none.json")


def test_hash_is_sha256(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "out"
    with atomic_dir(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "a").read_text() == "1"
    with pytest.raises(RuntimeError, match="stop"), atomic_dir(target) as folder:
        (folder / "b").write_text("2")
        raise RuntimeError("stop")
    assert [p.name for p in target.iterdir()] == ["sub"]
    with atomic_dir(target) as folder:
        (folder / "c").write_text("3")
    assert [p.name for p in target.iterdir()] == ["c"]
    assert list(tmp_path.iterdir()) == [target]


def test_tensors_round_trip_and_others_can_read_them(tmp_path: Path):
    tensors = {
        "a": torch.arange(6, dtype=torch.float16).reshape(2, 3),
        "b": torch.ones(3, 2).T,  # not contiguous
        "c": torch.zeros(0),
    }
    path = tmp_path / "w.safetensors"
    save_tensors(path, tensors, {"hash": "1", "author": "é"})
    back, info = load_tensors(path)
    assert info == {"author": "é", "format": "pt", "ft2_schema": "1", "hash": "1"}
    for found in (back, load_file(path)):
        assert set(found) == set(tensors)
        assert all(torch.equal(found[k], tensors[k]) for k in tensors)


def test_equal_tensors_give_equal_bytes(tmp_path: Path):
    metadata = {chr(97 + i): str(i) for i in range(12)}
    for name, order in (("1", list(metadata)), ("2", list(reversed(metadata)))):
        save_tensors(tmp_path / name, {"x": torch.ones(2)}, {k: metadata[k] for k in order})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    blob = (tmp_path / "1").read_bytes()
    size = int.from_bytes(blob[:8], "little")
    assert (8 + size) % 8 == 0
    keys = list(json.loads(blob[8 : 8 + size])["__metadata__"])
    assert keys == sorted(keys)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "newer", "missing"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str):
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"x": torch.ones(100)})
    blob = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "newer":
        path.write_bytes(blob.replace(b'"ft2_schema": "1"', b'"ft2_schema": "9"'))
    else:
        path.write_bytes({"empty": b"", "cut": blob[:-8], "text": b"hello, world"}[damage])
    with pytest.raises(UsageError, match=r"w\.safetensors"):
        load_tensors(path)


def test_a_picture_is_not_lines_of_text(tmp_path: Path):
    path = tmp_path / "ratings.jsonl"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UsageError, match="not a text file"):
        read_lines(path)
    path.write_text("a\nb\n", encoding="utf-8")
    assert read_lines(path) == ["a", "b"]


def test_a_line_ends_with_a_newline_and_nothing_else(tmp_path: Path):
    texts = ["a\u2028b\u2029c\x85d\x0be\x1cf", "", "last"]
    path = tmp_path / "rows.jsonl"
    for text in ("\n".join(texts), "\r\n".join(texts) + "\r\n"):
        path.write_bytes(text.encode())
        assert read_lines(path) == texts
    path.write_bytes(b"")
    assert read_lines(path) == []
