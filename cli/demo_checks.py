"""What the demo checks before it makes anything."""

from importlib.util import find_spec
from pathlib import Path

from ft2.cli.demo_config import DemoConfig
from ft2.cli.demo_configs import StageConfigs
from ft2.errors import MissingExtra

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


def check_inputs(settings: DemoConfig, configs: StageConfigs) -> None:
    """Refuse a portrait or speech of the user's that the models do not serve.

    Raises:
        UsageError: a missing file, no face, no sound, or a face that the codec cannot return.
    """
    if settings.portrait is None or settings.audio is None:
        return
    from ft2.cli.options import say
    from ft2.generator.run import check_inputs as check_files
    from ft2.generator.run import check_portrait
    from ft2.wan.weights import load_talking_model

    config = configs.generate
    files = (Path(settings.portrait), Path(settings.audio))
    inputs = check_files(config, *files, Path("own.mp4"))
    for remark in inputs.remarks:
        say(remark)
    model = load_talking_model(config.model, config.device)
    check_portrait(model, inputs.portrait, config.min_portrait_psnr)
