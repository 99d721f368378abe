from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from ft2.config import (
    ClipFormat,
    Config,
    EngineConfig,
    dump_yaml,
    flatten,
    load_config,
    preset_names,
    preset_path,
)
from ft2.errors import UsageError


class Inner(Config):
    rate: float = 1e-3
    steps: int = 10


class Sample(Config):
    name: str = "x"
    size: int | None = None
    inner: Inner = Inner(rate=0.5, steps=7)
    engine: EngineConfig = EngineConfig()
    stages: list[Inner] = Field(default_factory=list)


class Needy(Config):
    name: str
    inner: Inner


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def problems(error: pytest.ExceptionInfo[UsageError]) -> str:
    return error.value.message


def test_precedence_is_defaults_then_yaml_then_overrides(tmp_path: Path):
    path = write(tmp_path, "name: yaml\ninner:\n  rate: 2\n")
    config = load_config(Sample, path, ["inner.rate=3", "size=4"])
    assert config.name == "yaml"
    assert config.inner.rate == 3
    assert config.size == 4
    assert config.inner.steps == 7, "the default of the group, not of its class"
    assert load_config(Sample, None).inner.steps == 7


def test_a_key_of_a_group_keeps_the_other_defaults_of_the_group():
    assert load_config(Sample, None, ["inner.rate=3"]).inner == Inner(rate=3, steps=7)


def test_exponents_without_a_dot_are_numbers(tmp_path: Path):
    assert yaml.safe_load("1e-5") == "1e-5", "PyYAML still reads a string here"
    path = write(tmp_path, "engine:\n  learning_rate: 1e-5\n")
    assert load_config(Sample, path).engine.learning_rate == 1e-5
    assert load_config(Sample, None, ["engine.learning_rate=3e-6"]).engine.learning_rate == 3e-6


def test_all_problems_come_at_once_with_lines_and_suggestions(tmp_path: Path):
    path = write(
        tmp_path,
        "nme: a\nsize: big\n\nengine:\n  kind: deepsped\n  learning_rate: -1\nrate: 3\n",
    )
    with pytest.raises(UsageError) as error:
        load_config(Sample, path, ["inner.stps=2", "nonsense"])
    text = problems(error)
    assert f"{path}:1: unknown key 'nme'; did you mean 'name'?" in text
    assert f"{path}:2: size:" in text
    assert "'big'" in text
    assert f"{path}:5: engine.kind:" in text
    assert "did you mean 'deepspeed'?" in text
    assert f"{path}:6: engine.learning_rate:" in text
    assert f"{path}:7: unknown key 'rate'; did you mean 'inner.rate'?" in text
    assert "argument 'inner.stps=2': unknown key 'inner.stps'; did you mean 'inner.steps'?" in text
    assert "argument 'nonsense'" in text
    assert error.value.exit_code == 2


def test_a_config_of_another_command_is_told_from_a_misspelt_one():
    from ft2.generator.config import GenerateConfig

    with pytest.raises(UsageError) as error:
        load_config(GenerateConfig, "full/expert-lip")
    assert "'full/expert-lip' is no GenerateConfig" in problems(error)
    assert "presets that fit: nano/generate, full/generate" in str(error.value.hint)


def test_a_nested_key_with_a_word_more_is_suggested():
    from ft2.tlpo.config import ExpertConfig

    with pytest.raises(UsageError, match=r"'loop\.num_steps'"):
        load_config(ExpertConfig, "nano/expert-lip", ["steps=3"])


def test_an_error_in_a_list_names_its_line(tmp_path: Path):
    path = write(tmp_path, "stages:\n  - rate: 1\n  - rate: 2\n    stepz: 3\n")
    with pytest.raises(UsageError) as error:
        load_config(Sample, path)
    assert f"{path}:4: unknown key 'stages.1.stepz'; did you mean 'stages.1.steps'?" in problems(
        error
    )


def test_required_keys_are_named(tmp_path: Path):
    with pytest.raises(UsageError) as error:
        load_config(Needy, write(tmp_path, "inner: {}\n"))
    assert "the key 'name' is required" in problems(error)
    assert load_config(Needy, None, ["name=a", "inner.rate=2"]).inner.rate == 2


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "mapping"),
        ("name: a\nsize: 1\nname: b\n", ":3: the key 'name' is given twice"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("a: &x [*x]\n", "alias"),
        ("name: \x00\n", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
    ],
)
def test_broken_yaml_is_refused(tmp_path: Path, text: str, part: str):
    with pytest.raises(UsageError) as error:
        load_config(Sample, write(tmp_path, text))
    assert part in problems(error)


def test_yaml_that_is_not_text_is_refused(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError):
        load_config(Sample, path)


def test_an_empty_file_means_the_defaults(tmp_path: Path):
    assert load_config(Sample, write(tmp_path, "# nothing\n")) == Sample()


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="does not exist"):
        load_config(Sample, tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="does not exist"):
        load_config(Sample, "none.yaml")
    with pytest.raises(UsageError, match="is a directory"):
        load_config(Sample, tmp_path)


@pytest.mark.parametrize(
    "override", ["=1", "a", "inner=3", "name.x=1", "inner..rate=2", "inner.rate=[", "size=nan"]
)
def test_bad_overrides_are_refused(override: str):
    with pytest.raises(UsageError) as error:
        load_config(Sample, None, [override])
    assert error.value.exit_code == 2


def test_an_empty_value_is_null():
    assert load_config(Sample, None, ["size=4", "size="]).size is None


def test_unknown_presets_get_suggestions():
    names = preset_names()
    assert names == sorted(names)
    wrong = names[0] + "x"
    with pytest.raises(UsageError) as error:
        preset_path(wrong)
    assert wrong in error.value.message
    assert names[0] in error.value.hint


@given(
    st.builds(
        Sample,
        name=st.text(
            st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufeff")
        ),
        size=st.none() | st.integers(-(2**40), 2**40),
        inner=st.builds(Inner, rate=st.floats(allow_nan=False, allow_infinity=False)),
        stages=st.lists(st.builds(Inner, steps=st.integers(0, 9)), max_size=3),
    )
)
@settings(max_examples=40, deadline=None)
def test_dump_and_load_give_the_config_back(
    tmp_path_factory: pytest.TempPathFactory, config: Sample
):
    path = tmp_path_factory.mktemp("c") / "c.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(Sample, path) == config


def test_configs_cannot_be_changed_and_refuse_nan():
    with pytest.raises(ValidationError):
        Inner().rate = 2  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Inner(rate=float("nan"))


def test_flatten_gives_dotted_keys():
    assert flatten({"a": {"b": 1, "c": {"d": [1, {"e": 2}]}}, "f": {}}) == {
        "a.b": 1,
        "a.c.d": [1, {"e": 2}],
        "f": {},
    }


def test_the_nano_clip_format():
    clip = ClipFormat()
    assert (clip.seconds, clip.num_samples, clip.num_latent_frames) == (1.68, 26880, 6)
    full = ClipFormat(width=512, height=512, num_frames=81, fps=25)
    assert (full.num_samples, full.num_latent_frames) == (51840, 21)


@given(st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_frames_are_one_plus_a_multiple_of_four(num_frames: int):
    if num_frames % 4 == 1:
        assert ClipFormat(num_frames=num_frames).num_latent_frames == 1 + num_frames // 4
    else:
        with pytest.raises(ValidationError, match="1 \\+ 4k"):
            ClipFormat(num_frames=num_frames)


@pytest.mark.parametrize(
    "values",
    [
        {"betas": (0.9, 1.0)},
        {"kind": "torch", "zero_stage": 1},
        {"learning_rate": 0},
        {"micro_batch_size": 0},
        {"precision": "fp16"},
    ],
)
def test_engine_configs_that_cannot_work_are_refused(values: dict[str, object]):
    with pytest.raises(ValidationError):
        EngineConfig.model_validate(values)
