"""What the demo checks before it makes anything."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ft2.cli.demo_config import DemoConfig
from ft2.cli.demo_configs import StageConfigs
from ft2.errors import MissingExtra

if TYPE_CHECKING:
    from ft2.generator.checks import Inputs

EXTRAS = {
    "deepspeed": "train",
    "mediapipe": "face",
    "ttspico": "speech",
    "pocketsphinx": "speech",
}
"""Modules that a later stage needs, and the extra that brings each."""


def check_extras(configs: StageConfigs) -> None:
    """Refuse to start without what a later stage would miss.

    Raises:
        MissingExtra: a module is not installed.
    """
    engines = {config.engine.kind for config in (*configs.experts.values(), configs.fusion)}
    for module, extra in EXTRAS.items():
        if module == "deepspeed" and "deepspeed" not in engines:
            continue
        if find_spec(module) is None:
            raise MissingExtra(module, extra)


def check_files(settings: DemoConfig, configs: StageConfigs) -> "Inputs | None":
    """Return the user's portrait and speech, read; None without them. Loads no model.

    Raises:
        UsageError: a missing file, no face, or no sound.
    """
    if settings.portrait is None or settings.audio is None:
        return None
    from ft2.generator.checks import check_inputs as read

    files = (Path(settings.portrait), Path(settings.audio))
    return read(configs.generate, *files, Path("own.mp4"))


def check_inputs(settings: DemoConfig, configs: StageConfigs) -> None:
    """Refuse a portrait or speech of the user's that the models do not serve.

    Raises:
        UsageError: as of `check_files`, or a face that the codec cannot return.
    """
    inputs = check_files(settings, configs)
    if inputs is None:
        return
    from ft2.cli.options import say
    from ft2.generator.portrait_check import check_portrait
    from ft2.wan.weights import load_talking_model

    config = configs.generate
    for remark in inputs.remarks:
        say(remark)
    model = load_talking_model(config.model, config.device)
    check_portrait(model, inputs.portrait, config.min_portrait_psnr)
