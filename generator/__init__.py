"""The talking-video generator: base training, sampling and generation."""

if not __name__.startswith("ft2."):
    raise ImportError("import ft2.generator, not generator")
