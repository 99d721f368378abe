"""What `ft2 tlpo` refuses leaves nothing behind, so that the corrected command runs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_tlpo_cli import call
from tlpo_toys import TARGETS, World, expert_config, toy_model

from ft2.errors import UsageError
from ft2.lora import install_experts, save_expert
from ft2.runs import Silent
from ft2.tlpo.config import FusionConfig, LoraConfig, MaskConfig
from ft2.tlpo.experts import ordered
from ft2.tlpo.plan import plan_stage
from ft2.tlpo.train import train_expert, train_fusion


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts of the toy base without effect, one directory a dimension."""
    folder = tmp_path_factory.mktemp("saved")
    model = toy_model()
    install_experts(model.dit, TARGETS, 2, 2, 2)
    for index, name in enumerate(("quality", "motion")):
        save_expert(model.dit, index, folder / name / "adapter", {"dimension": name})
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraConfig(rank=4, alpha=4, targets=("foo",))}, "match no module: foo"),
        ({"mask": MaskConfig(kind="lip", min_sum=99999)}, "were dropped"),
    ],
)
def test_a_refused_run_leaves_room_for_the_corrected_one(
    world: World, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UsageError, match=message):
        train_expert(expert_config(world, steps=1, **changes), out, model=world.model)
    assert not out.exists()
    assert train_expert(expert_config(world, steps=1), out, model=world.model)["steps"] == 1


def test_files_of_others_and_a_run_that_has_begun_stay(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".gitkeep").touch()
    wrong = expert_config(world, steps=1, mask=MaskConfig(kind="lip", min_sum=99999))
    with pytest.raises(UsageError):
        train_expert(wrong, out, model=world.model)
    assert [p.name for p in out.iterdir()] == [".gitkeep"]

    class Broken(Silent):
        def update(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage.startswith("expert"):
                raise UsageError("in the second step")

    with pytest.raises(UsageError, match="second step"):
        train_expert(expert_config(world, steps=3), out, model=world.model, progress=Broken())
    assert (out / "config.yaml").exists()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(("key", "value"), [("device", "cuda"), ("weights", "void")])
def test_a_device_or_a_base_that_is_not_there_is_found_before_the_run_is_made(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = expert_config(world)
    if key == "weights":
        config = config.model_copy(update={"model": config.model.model_copy(update={key: value})})
    else:
        config = config.model_copy(update={key: value})
    with pytest.raises(UsageError, match="no CUDA device" if key == "device" else "void"):
        train_expert(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_fails_to_load_leaves_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise UsageError("damaged weights")

    monkeypatch.setattr("ft2.tlpo.stage.load_talking_model", fails)
    config = expert_config(world, lora=LoraConfig(rank=2, alpha=2, targets=("attn1.to_q",)))
    with pytest.raises(UsageError, match="damaged weights"):
        train_expert(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_expert_under_another_name_is_refused(world: World, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the lip expert .* was trained on motion") as caught:
        ordered({"lip": saved / "motion"})
    assert f"experts.motion={saved / 'motion'}" in caught.value.hint
    shared = expert_config(world).model_dump(exclude={"stage", "dimension", "lora"})
    config = FusionConfig(**shared, experts={"lip": saved / "motion"})
    with pytest.raises(UsageError, match="trained on motion"):
        train_fusion(config, tmp_path / "run", model=world.model)
    planned = plan_stage(config.model_copy(update={"dataset": tmp_path / "none"}))
    assert "trained on motion" in str(planned["missing"])
    assert set(ordered({"motion": saved / "motion"})) == {"motion"}


def _others_adapter(folder: Path) -> Path:
    from safetensors.torch import save_file

    adapter = folder / "critic" / "adapter"
    adapter.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    import torch

    names = [f"base_model.model.layers.0.q_proj.lora_{x}.weight" for x in "AB"]
    save_file({name: torch.ones(1, 1) for name in names}, adapter / "adapter_model.safetensors")
    return folder / "critic"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a file, a dataset's empty folder, and things that are no policy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/policy.json").write_text('{"version": 1}')
    _others_adapter(tmp_path)
    before = sorted(p for p in tmp_path.rglob("*"))
    yield tmp_path
    assert sorted(p for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "nano/expert-lip", "-o", "x"], "dataset=DIR"),
        (["train", "nano/expert-lip", "-o", "x"], "ft2 nsq build"),
        (["train", "nano/expert-lip", "dataset=afile", "-n"], "afile is a file"),
        (["train", "nano/fusion", "store=mixd", "-n"], "store: "),
        (["cache"], "ft2 tlpo cache nano/expert-lip"),
        (["cache", "nano/expert-lip", "dataset=data", "-o", "afile"], "'afile' is a file"),
        (["export", "--policy", "odd", "-o", "x.safetensors"], "policy.json does not say"),
        (["push", "--policy", "odd", "--repo", "a/b", "-n"], "policy.json does not say"),
        (["export", "--policy", "odd", "-o", "afile/x.safetensors"], "'afile' is a file"),
        (["export", "--policy", "odd", "-o", "lora.bin"], "lora.safetensors"),
        (["export", "--policy", "critic", "-o", "x.safetensors"], "LoRA of another network"),
        (["merge", "--expert", "critic", "-o", "x"], "a critic's adapter is no expert"),
    ],
)
def test_wrong_input_is_said_in_words(
    place: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("tlpo", *argv) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "literal[" not in shown


def test_merge_refuses_numbers_that_are_none_and_a_switch_of_one(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["merge", "--expert", str(saved / "motion"), "-o", str(tmp_path / "x")]
    for wrong, message in (
        (["--weight", "nan"], "nan is no weight"),
        (["--weight", "inf"], "inf is no weight"),
        (["--switch", "0.5"], "there is only one"),
    ):
        assert call("tlpo", *one, *wrong) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_dry_run_of_cache_sees_weights_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ft2.tlpo.plan.stores_of", lambda dataset: {"lip": 3})
    given = ["nano/expert-lip", f"dataset={tmp_path}", "-n"]
    assert call("tlpo", "cache", *given) == 0
    capsys.readouterr()
    assert call("tlpo", "cache", *given, "model.weights=nope") == 2
    assert "there are no weights at 'nope'" in capsys.readouterr().err
