"""The config of a small dataset build."""

from pathlib import Path

import pytest
from nsq_fakes import CLIP, write_conditions

from ft2.nsq.config import NsqConfig


@pytest.fixture
def config(tmp_path: Path) -> NsqConfig:
    folder = tmp_path / "conditions"
    folder.mkdir()
    path = write_conditions(folder, ["train", "train", "train", "dev", "test"])
    return NsqConfig(
        conditions=str(path),
        generator="fake/generate",
        critic="fake-critic",
        clip=CLIP,
        num_candidates=6,
        chunk_conditions=2,
        clips_per_shard=8,
        pairs_per_shard=10,
    )
