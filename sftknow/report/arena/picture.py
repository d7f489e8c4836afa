"""The stability–plasticity front in one picture: what every method learned, and what it kept of what was known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from sftknow.artifacts.arena import BASE, NOTHING
from sftknow.report.arena.contest import Contest, interval, mean_over_seeds
from sftknow.report.arena.field import INTERPOLATION, LEARNED, PLAIN, Field, Method
from sftknow.report.layout import Figure, figure
from sftknow.report.style import BLUE, GREEN, INK, MUTED, ORANGE, chart
from sftknow.report.words import Difference

ID = "arena-front"
_TITLE = "What is learned, and what is kept"
_NAMED = 7
"""Methods that bear their names; the others bear their ranks."""
_FONT = 9.0
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point of the picture, in points over the base and in per cent."""

    name: str
    rank: int | None
    strategy: str
    after: str
    x: float
    y: float
    bars: tuple[tuple[float, float] | None, tuple[float, float] | None]
    """95 % intervals of both; None with one seed."""


def picture(field: Field, found: Contest) -> Figure | None:
    """Every method of a table with 95 % bars over seeds, plain fine-tuning's line, and the front of all.

    Args:
        field: the arena.
        found: its methods, ranked.

    Returns:
        The figure with its data; None where no method has both measures.
    """
    dots = list(_dots(field, found))
    if len(dots) < 2:
        return None
    front = _front(dots)
    line = _line(field, found.form)
    with chart(
        id=ID,
        title=_TITLE,
        xlabel="learned: training facts (points over the base)",
        ylabel=f"kept: {found.form} of buckets 1 to 4 right (%)",
        lead=", with 95 % intervals over seeds.",
        height=4.9,
    ) as made:
        axes = made.axes
        if line:
            axes.plot(*zip(*line, strict=True), color=MUTED, linewidth=1.2, label="plain, interpolated to the base")
        axes.plot(
            [d.x for d in front], [d.y for d in front], color=GREEN, linewidth=1.4, linestyle=(0, (3, 2)), label="front"
        )
        for label, colour, marker, members in _groups(dots):
            for d in members:
                horizontal, vertical = d.bars
                if horizontal:
                    axes.plot(horizontal, [d.y, d.y], color=colour, linewidth=0.8, alpha=0.4)
                if vertical:
                    axes.plot([d.x, d.x], vertical, color=colour, linewidth=0.8, alpha=0.4)
            axes.plot(
                [d.x for d in members],
                [d.y for d in members],
                color=colour,
                marker=marker,
                linestyle="",
                label=label,
                markersize=6.5 if colour == INK else 5,
            )
        # By the points: with few seeds a single bar can be longer than all that is to be seen.
        for limits, places in ((axes.set_xlim, [d.x for d in dots]), (axes.set_ylim, [d.y for d in dots])):
            room = 0.15 * (max(places) - min(places)) or 1.0
            limits(min(places) - room, max(places) + room)
        made.said += [f"front: {', '.join(_said(d) for d in front)}"]
        made.said += [_said(d) for d in dots if d not in front]
        _labels(axes, dots, front)
    return figure(
        [made.panel],
        id=ID,
        title=_TITLE,
        note="Up and to the right is better. A method above the grey line keeps more than plain fine-tuning moved back "
        "towards its base, which costs nothing. Bars: 95 % intervals over seeds (Student’s t); long ones end at the "
        "frame. Numbers are ranks in the table below; the green line joins those that none beats in both.",
        columns=("rank", "method", "learned (points)", "low", "high", "kept (%)", "kept, low", "kept, high"),
        rows=[(d.rank, d.name, d.x, *(d.bars[0] or (None, None)), d.y, *(d.bars[1] or (None, None))) for d in dots],
    )


def _said(d: Dot) -> str:
    return f"{d.name} {d.x:.1f} learned, {d.y:.1f} kept"


def _dots(field: Field, found: Contest) -> Iterable[Dot]:
    base = [v[found.form] for v in field.base.values() if found.form in v]
    if base:
        value = 100 * sum(base) / len(base)
        yield Dot(name=BASE, rank=None, strategy=BASE, after=NOTHING, x=0.0, y=value, bars=(None, None))
    for rank, s in enumerate(found.standings, start=1):
        kept = s.kept.get(found.form)
        if s.learned and kept:
            yield Dot(
                name=s.method.title,
                rank=rank,
                strategy=s.method.strategy,
                after=s.method.after,
                x=100 * s.learned.value,
                y=100 * kept.value,
                bars=(_bar(s.learned), _bar(kept)),
            )


def _bar(found: Difference) -> tuple[float, float] | None:
    ends = interval(found)
    return (100 * ends[0], 100 * ends[1]) if ends else None


def _front(dots: Sequence[Dot]) -> list[Dot]:
    """Those that no other beats in both, from little learning to much."""
    found: list[Dot] = []
    for d in sorted(dots, key=lambda d: (-d.x, -d.y)):
        if not found or d.y > found[-1].y:
            found.append(d)
    return found[::-1]


def _line(field: Field, form: str) -> list[tuple[float, float]]:
    """Means of plain fine-tuning and its interpolated models, and the base, by distance from the base."""
    between = field.levels.get(Method(PLAIN, INTERPOLATION), {})
    levels = dict.fromkeys(level for kind in field.kinds for level in between.get(kind, {}))
    models = [{k: between[k][level] for k in field.kinds if level in between.get(k, {})} for level in levels]
    models.append({kind: field.at(Method(PLAIN), kind) for kind in field.kinds})
    points = []
    for model in models:
        x, y, far = (mean_over_seeds(field, model, name) for name in (LEARNED, form, "distance"))
        if x and y and far:
            points.append((far.value, 100 * x.value, 100 * y.value))
    base = [v[form] for v in field.base.values() if form in v]
    points += [(0.0, 0.0, 100 * sum(base) / len(base))] if base else []
    return [(x, y) for _, x, y in sorted(points)] if len(points) > 1 else []


def _groups(dots: Sequence[Dot]) -> list[tuple[str, str, str, list[Dot]]]:
    """Label, colour and marker of each sort of method."""
    ends = [d for d in dots if d.strategy == BASE or (d.strategy, d.after) == (PLAIN, NOTHING)]
    strategies = [d for d in dots if d.after == NOTHING and d not in ends]
    after = [d for d in dots if d.after != NOTHING]
    groups = [
        ("base and plain fine-tuning", INK, "D", ends),
        ("another way to train", BLUE, "o", strategies),
        ("plain, then a method", ORANGE, "s", after),
    ]
    return [group for group in groups if group[3]]


def _labels(axes: Axes, dots: Sequence[Dot], front: Sequence[Dot]) -> None:
    """Names beside the base, plain fine-tuning, the front and the first of the ranking, ranks beside the others: each
    where it covers nothing, or not at all."""
    drawing = axes.get_figure(root=True)
    if drawing is None:
        return
    drawing.draw_without_rendering()  # the limits are settled
    to_points = 72 / drawing.dpi
    frame = [float(v) * to_points for v in axes.get_window_extent().extents]
    at = {d.name: [float(v) * to_points for v in axes.transData.transform((d.x, d.y))] for d in dots}
    taken = [(x - 3.5, y - 3.5, x + 3.5, y + 3.5) for x, y in at.values()]
    first = [d for d in dots if d.rank is None or (d.strategy, d.after) == (PLAIN, NOTHING)]
    order = [*first, *front, *sorted(dots, key=lambda d: d.rank or 0)]
    order = list(dict.fromkeys(order))
    for place, d in enumerate(order):
        words = d.name if place < _NAMED else str(d.rank)
        width, height = 0.58 * _FONT * len(words) + 1, _FONT
        x, y = at[d.name]
        for reach in (6.0, 11.0, 18.0, 26.0):
            spots = [(x + reach * a + width * (a - 1) / 2, y + reach * b - height / 2, a, b) for a, b in _DIRECTIONS]
            free = [(lx, ly) for lx, ly, _, _ in spots if _free((lx, ly, lx + width, ly + height), taken, frame)]
            if free:
                lx, ly = free[0]
                taken.append((lx, ly, lx + width, ly + height))
                axes.annotate(
                    words,
                    (d.x, d.y),
                    xytext=(lx + width / 2 - x, ly + height / 2 - y),
                    textcoords="offset points",
                    ha="center",
                    va="center",
                    color=INK,
                    fontsize=_FONT,
                    arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6} if reach > 11 else None,
                )
                break


def _free(
    box: tuple[float, float, float, float], taken: Iterable[tuple[float, float, float, float]], frame: Sequence[float]
) -> bool:
    inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
    return inside and all(box[2] <= t[0] or box[0] >= t[2] or box[3] <= t[1] or box[1] >= t[3] for t in taken)
