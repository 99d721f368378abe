from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of foreign test data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder shared/data beside the repository is absent")
    return SHARED
