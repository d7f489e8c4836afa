"""A small drawing for a model card: accuracy at each restored level, as SVG that needs no library and no script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import escape

WIDTH, ROW, LEFT, RIGHT = 640, 26, 120, 60
INK, MUTED, LINE, BLUE, ORANGE = "#1f2328", "#59636e", "#d9dee3", "#0072b2", "#e69f00"


class Bar(NamedTuple):
    """One row: a value with its 95 % interval, shares between 0 and 1."""

    name: str
    value: float
    low: float
    high: float
    chosen: bool


def interval_bars(title: str, bars: Sequence[Bar]) -> str:
    """A dot with its interval for each row, from 0 to the next ten percent above; the chosen one in orange."""
    top = min(1.0, (int(10 * max(bar.high for bar in bars)) + 1) / 10)
    height = ROW * len(bars) + 2 * ROW

    def x(share: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * share / top

    words = "; ".join(f"{bar.name} {100 * bar.value:.1f} %" for bar in bars)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="sans-serif" font-size="13">',
        f"<title>{escape(f'{title}: {words}')}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18" fill="{INK}">{escape(title)}</text>',
    ]
    for tick in range(0, round(100 * top) + 1, 10):
        place = x(tick / 100)
        lines.append(
            f'<path d="M{place:.1f} {ROW}V{height - ROW}" stroke="{LINE}"/><text x="{place:.1f}" y="{height - 8}" '
            f'fill="{MUTED}" text-anchor="middle">{tick}</text>'
        )
    for number, bar in enumerate(bars):
        y, colour = ROW * (number + 1.5), ORANGE if bar.chosen else BLUE
        lines.append(
            f'<text x="{LEFT - 10}" y="{y + 4:.1f}" fill="{INK}" text-anchor="end">{escape(bar.name)}</text>'
            f'<path d="M{x(bar.low):.1f} {y:.1f}H{x(bar.high):.1f}" stroke="{colour}" stroke-width="3"/>'
            f'<circle cx="{x(bar.value):.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'
            f'<text x="{x(bar.high) + 8:.1f}" y="{y + 4:.1f}" fill="{MUTED}">{100 * bar.value:.1f}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])
