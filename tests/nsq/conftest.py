"""The config of a small dataset build, and a folder in memory: builds fsync every file."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nsq_fakes import CLIP, ColourScorer, HashGenerator, write_conditions

from ft2.nsq.build import build
from ft2.nsq.config import NsqConfig
from ft2.runs import Silent

_MEMORY = "/dev/shm"


@contextmanager
def memory_folder() -> Iterator[Path]:
    folder = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with memory_folder() as path:
        yield path


@pytest.fixture(scope="session")
def built() -> Iterator[Path]:
    """A dataset that nobody changes."""
    with memory_folder() as path:
        build(make_config(path), path / "out", HashGenerator(), ColourScorer(), progress=Silent())
        yield path / "out"


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    """A copy of a built dataset."""
    return shutil.copytree(built, tmp_path / "out")


@pytest.fixture
def config(tmp_path: Path) -> NsqConfig:
    return make_config(tmp_path)


def make_config(root: Path) -> NsqConfig:
    folder = root / "conditions"
    folder.mkdir()
    path = write_conditions(folder, ["train", "train", "train", "dev", "test"])
    return NsqConfig(
        conditions=str(path),
        generator="fake/generate",
        critic="fake-critic",
        clip=CLIP,
        num_candidates=6,
        chunk_conditions=2,
        train_shards=3,
        shard_bytes=20_000,
    )
