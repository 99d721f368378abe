"""Tables of a training run by noise level: of its training pairs, and of held-out ones."""

from collections.abc import Mapping, Sequence

from ft2.tlpo.diagnostics import NUM_BINS

_BINS = (
    ("d_chosen", "error, chosen side", "+.1e"),
    ("d_rejected", "error, rejected side", "+.1e"),
    ("implicit_accuracy", "implicit accuracy", ".2f"),
    ("kl_proxy", "distance", ".1e"),
    ("kl_proxy_outside", "distance outside the mask", ".1e"),
    ("safeguard", "safeguard", ".2f"),
)
"""Rows of the table of training pairs: metric, label, format."""

_HELD_OUT = (
    ("d_chosen_by_sigma", "error, chosen side", "+.1e"),
    ("d_rejected_by_sigma", "error, rejected side", "+.1e"),
    ("accuracy_by_sigma", "implicit accuracy", ".2f"),
)


def noise_levels(history: Sequence[Mapping[str, object]]) -> list[str]:
    """Return means by tenth of the noise levels, over the last half of the steps."""
    late = [h["bins"] for h in history[len(history) // 2 :] if isinstance(h.get("bins"), Mapping)]
    if not late:
        return []
    rows = [("pairs and draws", [f"{count:.0f}" for count in _counts(late)])]
    for name, label, form in _BINS:
        known: list[Mapping[str, Sequence[float | None]]] = [b for b in late if name in b]  # type: ignore[operator, misc]
        counts, cells = _counts(known), []
        for i, count in enumerate(counts):
            total = sum((b[name][i] or 0.0) * (b["count"][i] or 0) for b in known)
            cells.append(format(total / count, form) if count else "")
        if known:
            rows.append((label, cells))
    return [
        "<h2>Error against the reference by noise level</h2>",
        '<p class="note">Tenths of the training distribution, from little to much noise; the last '
        "half of the steps.</p>",
        _table([str(i + 1) for i in range(NUM_BINS)], rows),
    ]


def held_out(result: Mapping[str, object]) -> list[str]:
    """Return what the last evaluation found at each of its noise levels, if there was one."""
    found = result.get("held_out")
    if not isinstance(found, Mapping) or "sigmas" not in found:
        return []
    rows = [
        (label, [format(value, form) for value in found[name]]) for name, label, form in _HELD_OUT
    ]
    note = f"{found['pairs']} pairs of unseen conditions with fixed noise, after the last step."
    return [
        "<h2>Held-out pairs by noise level</h2>",
        f'<p class="note">{note}</p>',
        _table([f"{sigma:g}" for sigma in found["sigmas"]], rows),
    ]


def _counts(bins: Sequence[object]) -> list[float]:
    """Return the number of draws in each tenth."""
    return [sum(b["count"][i] for b in bins) for i in range(NUM_BINS)]  # type: ignore[index]


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    body = "".join(
        f"<tr><th>{label}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for label, cells in rows
    )
    top = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="scroll"><table><tr><th></th>{top}</tr>{body}</table></div>'
