"""Settings for every test: one thread, no network, no terminal, Ctrl-C as in the foreground."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# a suite that a shell started in the background would hand an ignored SIGINT to every child
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of foreign test data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder shared/data beside the repository is absent")
    return SHARED
