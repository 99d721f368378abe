"""A tiny published model in diffusers' layout, made once."""

from pathlib import Path

import pytest
from published_toys import write_encoders, write_speech, write_tokenizer, write_transformer


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with tiny models of the real classes, saved by their own libraries."""
    folder = tmp_path_factory.mktemp("published")
    write_transformer(folder)
    write_encoders(folder)
    write_speech(folder)
    write_tokenizer(folder / "tokenizer")
    return folder
