"""A plain page around charts and tables, for runs, comparisons and evaluations."""

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { --paper: #fcfcfa; --ink: #1b1e23; --muted: #58606b; --rule: #dfdfd8; --hue: #1d66b0;
  --motion: #1d66b0; --lip: #b5460f; --quality: #1a7550; --below: #b5460f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171b; --ink: #e9e8e3; --muted: #a0a8b2; --rule: #30343b; --hue: #74b3f2;
  --motion: #74b3f2; --lip: #f19a66; --quality: #62cb9f; --below: #f19a66; } }
body { margin: 2rem auto; max-width: 68rem; padding: 0 1.25rem; background: var(--paper);
  color: var(--ink); font: 400 1rem/1.5 ui-sans-serif, system-ui, sans-serif; }
figure { margin: 0; }
h1, h2 { font-weight: 500; line-height: 1.2; } h2 { margin-top: 2rem; font-size: 1.2rem; }
.charts { display: grid; gap: 1.5rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.note { color: var(--muted); font-size: .875rem; }
.alarm { border-left: 4px solid #b5460f; padding-left: .75rem; }
table { border-collapse: collapse; font-size: .9rem; } .scroll { overflow-x: auto; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: right; }
th:first-child { text-align: left; font-weight: 500; } .scroll td { white-space: nowrap; }
svg { display: block; width: 100%; max-width: 26rem; overflow: visible; fill: var(--ink);
  font: 12px ui-sans-serif, system-ui, sans-serif; }
svg .tick { fill: var(--muted); font-size: 11px; } svg .mid { text-anchor: middle; }
svg .far { text-anchor: end; } svg .end { font-size: 11px; }
svg .grid { stroke: var(--rule); fill: none; }
svg .ref { stroke: var(--muted); stroke-dasharray: 3 3; fill: none; }
svg .curve { fill: none; stroke: var(--hue); stroke-width: 1.8; }
svg .dashed .curve { stroke-dasharray: 5 4; } svg rect, svg circle { fill: var(--hue); }
.d-motion { --hue: var(--motion); } .d-lip { --hue: var(--lip); }
.d-quality { --hue: var(--quality); } svg .below { --hue: var(--below); }
svg .whisker { stroke: var(--hue); stroke-width: 2; opacity: .7; }
svg .name, svg .value { text-anchor: end; } svg .value { font-size: 11px; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole HTML page with the style of the charts."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
