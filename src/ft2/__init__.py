"""ft2: align audio-driven portrait video with human preferences."""

__version__ = "0.1.0"
