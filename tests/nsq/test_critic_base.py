"""A critic that does not fit its base is found before a clip is made."""

import json
import shutil
from pathlib import Path

import pytest

from ft2.cli.nsq_build import lazy_scorer
from ft2.config import load_config
from ft2.errors import UsageError
from ft2.nsq.config import NsqConfig

CRITIC = Path(__file__).resolve().parents[2] / "notebooks" / "critic"


def test_a_critic_of_another_base_is_refused_before_clips_are_made(tmp_path: Path):
    folder = Path(shutil.copytree(CRITIC, tmp_path / "critic"))
    card = json.loads((folder / "critic.json").read_text())
    (folder / "critic.json").write_text(json.dumps(card | {"base_sha256": "0" * 64}))
    settings = load_config(NsqConfig, "nano/nsq", [f"critic={folder}"])
    with pytest.raises(UsageError, match=r"was trained on another base \(sha256 000000000000"):
        lazy_scorer(settings)
    elsewhere = card["model"] | {"weights": str(tmp_path / "absent")}
    (folder / "critic.json").write_text(json.dumps(card | {"model": elsewhere}))
    lazy_scorer(settings)  # nothing to compare with: stored scores may be enough
