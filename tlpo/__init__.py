"""Preference training of the generator: Flow-DPO experts, the fusion gate, policies."""

if not __name__.startswith("ft2."):
    raise ImportError("import ft2.tlpo, not tlpo")
