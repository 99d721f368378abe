"""One toy world for all tests of an area, and the dataset reader pointed at it."""

import pytest
from tlpo_toys import World, toy_world


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return toy_world(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def world(shared_world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("ft2.tlpo.stage.read_pairs", lambda _, store: shared_world.pairs[store])
    return shared_world
