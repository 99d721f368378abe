"""One toy world for all tests of an area, and the dataset reader pointed at it."""

from pathlib import Path

import pytest
from tlpo_toys import World, expert_config, toy_world

from ft2.tlpo.train import train_expert


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return toy_world(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def world(shared_world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("ft2.tlpo.views.read_pairs", lambda _, store: shared_world.pairs[store])
    return shared_world


@pytest.fixture(scope="session")
def experts(shared_world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three experts, each trained on its own channel's pairs."""
    folder = tmp_path_factory.mktemp("experts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ft2.tlpo.views.read_pairs", lambda _, store: shared_world.pairs[store])
        for name in ("motion", "lip", "quality"):
            train_expert(expert_config(shared_world, name), folder / name, model=shared_world.model)
    return {name: folder / name for name in ("motion", "lip", "quality")}
