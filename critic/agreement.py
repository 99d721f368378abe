"""How far raters agree beyond chance."""

from collections.abc import Sequence
from typing import Any

from ft2.critic.answers import Answer
from ft2.errors import MissingExtra


def agreement(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Return Krippendorff's alpha of each dimension: 1 is full agreement, 0 is chance.

    Unsure counts as no answer; None where no item was rated twice, or all answers are the same.
    """
    try:
        import krippendorff
    except ImportError as error:
        raise MissingExtra("krippendorff", "app") from error
    from ft2.critic.merge import canonical

    found: dict[str, float | None] = {}
    for dimension in sorted({answer.dimension for answer in answers}):
        units: dict[Any, list[str]] = {}
        for answer in answers:
            if answer.dimension == dimension and answer.answer != "unsure":
                item, word = canonical(answer)
                units.setdefault(item, []).append(word)
        words = sorted({word for said in units.values() for word in said})
        counts = [[said.count(word) for word in words] for said in units.values()]
        enough = len(words) > 1 and any(sum(row) > 1 for row in counts)
        found[dimension] = (
            float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))
            if enough
            else None
        )
    return found
