"""Talking-NSQ: from clips and scores to preference pairs in Arrow shards with a card."""

if __name__ != "ft2.nsq":
    raise ImportError(f"import this package as 'ft2.nsq', not as '{__name__}'")
