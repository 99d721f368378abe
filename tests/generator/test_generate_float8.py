"""``ft2 generate fp8=true``: the plan, a video, and where it is refused."""

import json

import numpy as np
import pytest

from ft2 import faces, media
from ft2.__main__ import main
from ft2.puppet import identities


def run(*argv):
    with pytest.raises(SystemExit) as stop:
        main(["generate", *map(str, argv)])
    return int(stop.value.code or 0)


def test_a_video_of_float8_weights_and_its_record(tmp_path):
    media.write_png(tmp_path / "face.png", faces.align(identities.load("astronaut").image))
    media.write_wav(tmp_path / "s.wav", np.random.default_rng(0).normal(size=8000) * 0.1)
    given = ["--portrait", tmp_path / "face.png", "--audio", tmp_path / "s.wav", "-q"]
    base = ["steps=2", *given]
    plain, small, again = (tmp_path / f"{name}.mp4" for name in ("plain", "small", "again"))
    assert run(*base, "-o", plain) == 0
    assert run(*base, "fp8=true", "-o", small) == 0
    assert plain.read_bytes() != small.read_bytes()
    assert json.loads(small.with_suffix(".json").read_text())["config"]["fp8"] is True
    assert run("--from", small.with_suffix(".json"), "-o", again, "-q") == 0
    assert again.read_bytes() == small.read_bytes()


def test_the_plan_counts_float8(capsys):
    found = {}
    for fp8 in ("false", "true"):
        assert run("full/generate", "vram=48", f"fp8={fp8}", "--dry-run", "--json") == 0
        found[fp8] = json.loads(capsys.readouterr().out)
    assert (found["false"]["placement"], found["false"]["placement_with_fp8"]) == (
        "encoders", "all",
    )  # fmt: skip
    assert found["true"]["placement"] == "all"
    assert 0.5 < found["true"]["dit_memory_gib"] / found["false"]["dit_memory_gib"] < 0.56


def test_float8_is_refused_where_it_would_be_ignored(tmp_path, capsys):
    row = {"portrait": "p.png", "audio": "a.wav", "fp8": True}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert run("--batch", tmp_path / "rows.jsonl", "-o", tmp_path / "out") == 2
    assert "a row cannot change fp8" in capsys.readouterr().err
    (tmp_path / "g.yaml").write_text("fp8: true\nmodel: {weights: nano}\n")
    from ft2.cli.nsq_build import _read_generator
    from ft2.errors import UsageError
    from ft2.generator.checks import load_sampling
    from ft2.nsq.config import NsqConfig

    with pytest.raises(UsageError, match="vram=24 is only for ft2 generate"):
        load_sampling("nano/generate", ["vram=24"])
    with pytest.raises(UsageError, match="fp8=True is only for ft2 generate"):
        _read_generator(NsqConfig(conditions="c", critic="c", generator=str(tmp_path / "g.yaml")))
    assert run("device=cuda", "fp8=true", "--portrait", "x", "--audio", "y") == 2
