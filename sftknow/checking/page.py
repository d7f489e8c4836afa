"""A check as one page: the sentence, the flow of facts between buckets as a picture, the tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from sftknow.artifacts.checks import FATES, CheckResult
from sftknow.checking.words import LISTED, asked, level, percent, worst_facts

_COLOURS = ("#b8bec6", "#c6dbef", "#7fb3dc", "#3d85bd", "#0b4f8a")
"""Buckets 0 to 4, from light to dark; 0 is grey."""
_WIDTH, _HEIGHT, _GAP, _BAR = 640, 340, 10, 14

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --muted: #59636e; --line: #d9dee3; --ground: #ffffff }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --muted: #9198a1; --line: #3d444d; --ground: #0d1117 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--ground); max-width: 46rem; margin: 0 auto;
  padding: 1rem }
h1 { font-size: 1.35rem; line-height: 1.35 } h2 { font-size: 1.05rem; margin-top: 2rem }
p.small { color: var(--muted); font-size: .9rem }
svg { width: 100%; height: auto } svg text { fill: var(--ink); font: 13px system-ui, sans-serif }
.table { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child, td.text, th.text { text-align: left }
"""


def page(result: CheckResult) -> str:
    """The page, whole and without any other file."""
    levels = [(level(bucket), f"{facts:,}", percent(a), percent(b)) for bucket, facts, a, b in result.by_level]
    relations = [
        (name, f"{facts:,}", percent(a), percent(b))
        for name, (facts, a, b) in sorted(result.by_relation.items(), key=lambda item: item[1][2] - item[1][1])
    ]
    lost = [
        (
            f"{fact.subject} ({fact.topic})",
            fact.object,
            f"{fact.before} of {fact.tries}",
            str(fact.after),
            fact.finding or "",
        )
        for fact in worst_facts(result.facts)
    ]
    parts = [
        f"<h1>{escape(result.sentence)}</h1>",
        f'<p class="small">{escape(result.base)} → {escape(result.tuned)}. {escape(asked(result))}.'
        f"{''.join(f' {escape(note)}.' for note in result.notes)}</p>",
        flow_picture(result.flow()),
        f"<p>Facts by any hit before and after: {', '.join(f'{fate} {result.count(fate):,}' for fate in FATES)}.</p>",
        "<h2>How well a fact is known, by how well the base knows it</h2>",
        '<p class="small">Half of the statements tell how well the base knows a fact, the others measure both.</p>',
        _table(("base knows it", "facts", "before", "after"), levels),
        "<h2>Relations, those that lost most first</h2>",
        _table(("relation", "facts", "before", "after"), relations),
    ]
    if lost:
        parts += [
            f"<h2>Facts that are lost or surely known worse ({len(lost)})</h2>",
            _table(("fact", "object", "before", "after", "asked again"), lost[:LISTED], texts=(1, 4)),
        ]
    title = f"check: {result.tuned}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def flow_picture(table: Sequence[Sequence[int]]) -> str:
    """An SVG of the 5 × 5 table: buckets before on the left, after on the right, ribbons as wide as facts moved."""
    total = max(1, sum(map(sum, table)))
    scale = (_HEIGHT - 4 * _GAP - 40) / total
    lefts = _tops([sum(row) for row in table], scale)
    rights = _tops([sum(row[i] for row in table) for i in range(5)], scale)
    x0, x1 = 150, _WIDTH - 150
    ribbons, bars = [], []
    out, into = list(lefts), list(rights)
    for before in range(4, -1, -1):
        for after in range(4, -1, -1):
            count = table[before][after]
            if count:
                height, a, b = count * scale, out[before], into[after]
                out[before] += height
                into[after] += height
                middle = (x0 + x1) / 2
                ribbons.append(
                    f'<path d="M{x0 + _BAR} {a:.1f}C{middle} {a:.1f} {middle} {b:.1f} {x1} {b:.1f}V{b + height:.1f}'
                    f'C{middle} {b + height:.1f} {middle} {a + height:.1f} {x0 + _BAR} {a + height:.1f}Z" '
                    f'fill="{_COLOURS[before]}" fill-opacity=".55"><title>{count:,} facts: {level(before)} before, '
                    f"{level(after)} after</title></path>"
                )
    for side, tops, x, anchor, at in (
        ("before", lefts, x0, "end", x0 - 8),
        ("after", rights, x1, "start", x1 + _BAR + 8),
    ):
        bars.append(f'<text x="{at}" y="16" text-anchor="{anchor}" font-weight="600">{side}</text>')
        for bucket in range(5):
            count = sum(table[bucket]) if side == "before" else sum(row[bucket] for row in table)
            height = count * scale
            bars.append(
                f'<rect x="{x}" y="{tops[bucket]:.1f}" width="{_BAR}" height="{max(height, 1):.1f}" '
                f'fill="{_COLOURS[bucket]}"/>'
                f'<text x="{at}" y="{tops[bucket] + max(height, 8) / 2 + 4:.1f}" text-anchor="{anchor}">'
                f"{level(bucket)}: {count:,}</text>"
            )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Facts by how well they are known, before '
        f'and after fine-tuning">{"".join(ribbons)}{"".join(bars)}</svg>'
    )


def _tops(counts: Sequence[int], scale: float) -> list[float]:
    """Where each bucket's bar begins; bucket 4 is on top."""
    tops, at = [0.0] * 5, 28.0
    for bucket in range(4, -1, -1):
        tops[bucket] = at
        at += max(counts[bucket] * scale, 8) + _GAP
    return tops


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: Sequence[int] = ()) -> str:
    kinds = ["text" if i in texts or i == 0 else "" for i in range(len(head))]

    def line(cells: Sequence[str], tag: str) -> str:
        inside = (
            f"<{tag}{f' class={kind}' if kind else ''}>{escape(cell)}</{tag}>"
            for cell, kind in zip(cells, kinds, strict=True)
        )
        return f"<tr>{''.join(inside)}</tr>"

    return f'<div class="table"><table>{line(head, "th")}{"".join(line(row, "td") for row in rows)}</table></div>'
