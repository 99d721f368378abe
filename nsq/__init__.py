"""Talking-NSQ: from generated clips and scores to preference pairs in Arrow shards."""

if not __name__.startswith("ft2."):
    raise ImportError("import ft2.nsq, not nsq")
