"""Talking-Critic: from people's ratings to a reward model that answers three questions."""

if not __name__.startswith("ft2."):
    raise ImportError("import ft2.critic, not critic")
