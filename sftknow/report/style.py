"""How the figures look: colours, marks, and the way from a matplotlib figure to SVG and PNG.

Mastery buckets and restoration levels are ordered, and so are their colours: one hue each, from pale to strong. Other
colours are Okabe and Ito's (2008), which people with any form of colour blindness can tell apart. Every series also
has a marker of its own. Files have a white ground; inside the page the same drawing takes the page's colours.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing

from sftknow.report.layout import Panel

INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#d9dee3", "#ffffff"
BLUE, SKY, GREEN, ORANGE, RED, PURPLE = "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7"

BUCKET = ("#a3adb7", "#8fc3e3", "#4f9bcf", "#1f6fb0", "#0b3c78")
"""Mastery buckets 0 to 4; bucket 0, which the base never knew, is grey."""
LEVEL = ("#e2b04a", "#d98c2b", "#c26a1a", "#97480f", "#612a08")
"""Restoration levels, from the smallest share to the largest."""
ON_PALE, ON_STRONG = "#010101", "#fefefe"
"""Words on a bucket's colour: on the paler ones, and on the stronger ones."""

_PAGE_COLOURS = {
    **{colour: f"var(--bucket-{place})" for place, colour in enumerate(BUCKET)},
    **{colour: f"var(--level-{place})" for place, colour in enumerate(LEVEL)},
    ON_PALE: "var(--on-pale)",
    ON_STRONG: "var(--on-strong)",
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    PAPER: "var(--card)",
    BLUE: "var(--blue)",
    SKY: "var(--sky)",
    GREEN: "var(--green)",
    ORANGE: "var(--orange)",
    RED: "var(--red)",
    PURPLE: "var(--purple)",
}

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sftknow",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": PAPER,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.5,
    "errorbar.capsize": 2.5,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}

Errors = Sequence[float] | tuple[Sequence[float], Sequence[float]]
"""Lengths of error bars: the same to both sides, or lower and upper."""

WIDTH, HEIGHT = 4.6, 3.7
"""Inches of an ordinary panel: 331 units wide, so that text stays readable at a phone's width."""


@dataclass(frozen=True)
class Look:
    """Colour, marker and line style of a series."""

    colour: str
    marker: str
    line: str


_MARKERS = "osD^v"
BUCKET_LOOKS = tuple(Look(colour, marker, "-") for colour, marker in zip(BUCKET, _MARKERS, strict=True))
LEVEL_LOOKS = tuple(Look(colour, marker, "-") for colour, marker in zip(LEVEL, _MARKERS, strict=True))
MIXED, OTHER, PLAIN, SECOND = Look(PURPLE, "P", "--"), Look(MUTED, "X", ":"), Look(BLUE, "o", "-"), Look(RED, "s", "-")


def look(bucket: int | None, source: str = "mixed") -> Look:
    """The look of a training source: the five buckets, a mixed draw, anything else."""
    if bucket is not None:
        return BUCKET_LOOKS[bucket]
    return MIXED if source == "mixed" else OTHER


def use_space(axes: Axes, values: Iterable[float]) -> None:
    """Limit the vertical axis to what is drawn, with some room; from zero where that is near.

    Args:
        axes: to limit.
        values: the lowest and highest of everything that is shown, errors included.
    """
    shown = [value for value in values if math.isfinite(value)]
    if not shown:
        return
    low, high = min(shown), max(shown)
    room = 0.08 * max(high - low, 0.02 * abs(high), 1e-9)
    axes.set_ylim(0 if 0 <= low < 0.2 * high else low - room, high + room)


def sentence(parts: Iterable[str]) -> str:
    """Parts of a picture's description in one sentence."""
    return "; ".join(parts) + "."


@contextmanager
def drawing(*, height: float = HEIGHT) -> Iterator[tuple[Drawing, Axes]]:
    """A figure with one pair of axes under the report's settings; the settings end with the block."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Drawing(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.patch.set_gid("ground")
        yield figure, figure.add_subplot()


def line_with_bars(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    errors: Errors,
    style: Look,
    label: str,
    *,
    line: str = "",
) -> None:
    """A line with error bars; the legend shows the line and its marker alone."""
    bars = axes.errorbar(
        x, y, yerr=errors, color=style.colour, marker=style.marker, linestyle=line or style.line, elinewidth=0.9
    )
    bars[0].set_label(label)


def base_line(axes: Axes, value: float) -> None:
    """A level line at the base model's value."""
    axes.axhline(value, color=INK, linestyle=(0, (1, 1.5)), linewidth=1.4, label="base model")


def legend_below(figure: Drawing, axes: Axes) -> None:
    """A legend under the axes, where no line can run through it, in as many columns as its words leave room for."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = max(1, min(3, len(labels), 50 // (max(map(len, labels)) + 6)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.2, columnspacing=1.2)


def to_panel(figure: Drawing, *, id: str, title: str, alt: str) -> Panel:
    """Render a drawing to SVG and PNG. The same drawing gives the same bytes. Call it inside `drawing`."""
    vector, raster = io.StringIO(), io.BytesIO()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is settled; without this it would be sought twice more
    figure.savefig(vector, format="svg", metadata={"Date": None, "Title": title, "Description": alt})
    figure.savefig(raster, format="png", dpi=180, metadata={"Software": None, "Title": title, "Description": alt})
    return Panel(id=id, title=title, alt=alt, svg=vector.getvalue(), png=raster.getvalue())


class Chart:
    """A panel in the making: its axes, and what is to be seen in words.

    Attributes:
        axes: to draw on.
        said: one part of the description for each series.
        panel: the finished drawing, once the block is left.
    """

    panel: Panel

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.said: list[str] = []


@contextmanager
def chart(
    *, id: str, title: str, xlabel: str, ylabel: str = "", lead: str = ".", height: float = HEIGHT
) -> Iterator[Chart]:
    """A panel with labelled axes and a legend below: draw in the block, take `Chart.panel` after it.

    Args:
        id: name of its files.
        title: heading.
        xlabel: of the horizontal axis.
        ylabel: of the vertical one.
        lead: stands between the title and what was said in the description for those who cannot see.
        height: in inches.
    """
    with drawing(height=height) as (figure, axes):
        made = Chart(axes)
        yield made
        axes.set_xlabel(xlabel)
        if ylabel:
            axes.set_ylabel(ylabel)
        legend_below(figure, axes)
        made.panel = to_panel(figure, id=id, title=title, alt=f"{title}{lead} {sentence(made.said)}")


def inline_svg(panel: Panel) -> str:
    """The SVG as part of a page: no XML head, ids of its own, the page's colours and width.

    The title and description are given by the page, which names the drawing by ``aria-label``.
    """
    svg = panel.svg[panel.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<title>.*?</title>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{panel.id}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{panel.id}-", svg)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for colour, variable in _PAGE_COLOURS.items():
        svg = re.sub(re.escape(colour), variable, svg, flags=re.IGNORECASE)
    svg = re.sub(r"(<svg\b)", r'\1 aria-hidden="true" focusable="false"', svg, count=1)
    return svg.strip()
