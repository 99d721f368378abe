"""`ft2 generator ablate`: what is trained, what is refused, and a whole table at a tiny budget."""

import json
from pathlib import Path

import pytest

from ft2.__main__ import main
from ft2.cli.ablate import stages_of
from ft2.cli.ablate_config import VARIANTS, AblationConfig
from ft2.config import ClipFormat, load_config
from ft2.generator.config import MeasureConfig
from ft2.generator.measure import measure_shards
from ft2.puppet.dataset import build_arrays, build_conditions
from ft2.runs import Silent


def call(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["generator", "ablate", *argv])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_every_variant_trains_equally_long_and_differs_in_one_thing(tmp_path: Path) -> None:
    for family, share in (("nano", 0.5), ("full", 0.8)):
        settings = load_config(AblationConfig, f"{family}/generator-ablation", ["steps=1000"])
        found = {name: stages_of(settings, name, 3, tmp_path) for name in VARIANTS}
        for name, stages in found.items():
            assert sum(stage.config.steps for stage in stages) == 1000, name
            assert {stage.config.seed for stage in stages} == {3}
            assert stages[0].config.fresh == settings.fresh
        clip, frame = found["both stages"]
        assert clip.config.steps == 1000 * share
        assert (clip.config.stage, frame.config.stage) == ("clip", "frame")
        assert frame.config.start == str(tmp_path / clip.folder)
        assert frame.config.fresh == ()
        assert found["no lip mask"][0] == clip, "the stages have their beginning in common"
        assert found["no lip mask"][1].config.lip_probability == 0.0
        assert frame.config.lip_probability == 0.8
        blind = found["no identity"][1].config
        assert (blind.dropout.identity, frame.config.dropout.identity) == (1.0, 0.0)
        assert [len(found[name]) for name in ("clip stage", "frame stage")] == [1, 1]
        if family == "nano":
            assert frame.config.engine.decay_steps == 500
    assert len({s.folder for stages in found.values() for s in stages}) == 7


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["conditions=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["variants=[clip stage]"], "both stages"),
        (["clip_share=1"], "clip_share"),
        (["model.branches=[motion]"], "identity"),
        (["variants=[both stages,head]"], "head"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(
    keys: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("nano/generator-ablation", *keys, "-o", str(tmp_path / "run")) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_tiny_ablation_from_training_to_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = ClipFormat()
    build_arrays(tmp_path / "arrays", "train", 6, clip, probability=0.0, energy=(0.25, 2.0))
    keys = ["joints=none", "every=5"]
    measure_shards(load_config(MeasureConfig, None, keys), tmp_path / "arrays", Silent())
    conditions = build_conditions(tmp_path / "world", 2, "dev", 4, clip)
    argv = ["nano/generator-ablation", f"data={tmp_path / 'arrays'}", f"conditions={conditions}",
            "steps=2", "overrides.generator-frame=[engine.micro_batch_size=2]",
            "overrides.generate=[steps=2]", "--json", "-q",
            "-o", str(tmp_path / "run")]  # fmt: skip
    assert call(*argv, "-n") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["training_runs"], plan["training_steps"]) == (7, 9)
    assert call(*argv) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["difference_to_base"]) == set(VARIANTS) - {"both stages"}
    table = (tmp_path / "run/table.md").read_text()
    assert "'both stages'" in table
    assert "<svg" in (tmp_path / "run/report.html").read_text()
    clips = {p: p.read_bytes() for p in (tmp_path / "run").glob("seed-0/*/clips/*.mp4")}
    assert len(clips) == 10
    assert len(set(clips.values())) > 5, "variants differ"
    encoded = list((tmp_path / "run/encoded").glob("clips-*.safetensors"))
    assert len(encoded) == 1, "all runs share what is encoded"
    weights = next((tmp_path / "run/seed-0").glob("clip-2/model/dit.safetensors"))
    before = weights.stat().st_mtime_ns
    assert call(*argv, "--resume") == 0
    assert weights.stat().st_mtime_ns == before, "what is done stays done"
