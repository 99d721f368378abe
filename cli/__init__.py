"""The command line: the only place that wires the packages together."""

if not __name__.startswith("ft2."):
    raise ImportError("import ft2.cli, not cli")
