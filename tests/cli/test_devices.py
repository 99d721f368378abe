"""A device that is not there is refused with exit code 2 before anything is loaded."""

import pytest
import torch

from ft2.__main__ import main
from ft2.config import load_config
from ft2.errors import UsageError
from ft2.generator.config import GenerateConfig
from ft2.qwen.spec import QwenSpec
from ft2.qwen.thinker import load_thinker
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "bogus"])
def test_models_refuse_it_before_they_read_weights(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device"):
        load_thinker(QwenSpec(weights="/absent"), name)
    with pytest.raises(UsageError, match="device"):
        load_talking_model(WanSpec(weights="/absent"), name)


def test_configs_know_its_name(capsys):
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        load_config(GenerateConfig, "nano/generate", ["device=gpu"])
    with pytest.raises(SystemExit) as stop:
        main(["critic", "train", "nano/critic", "ratings=r.jsonl", "device=gpu"])
    assert stop.value.code == 2
    assert "choose cpu, cuda or cuda:N" in capsys.readouterr().err
