"""TLPO: preference optimisation of a flow-matching generator, per dimension, then fused."""

if not __name__.startswith("ft2."):
    raise ImportError("import ft2.tlpo, not tlpo")
