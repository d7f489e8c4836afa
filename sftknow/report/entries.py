"""Numbers and names as the report shows them, and the entries of tables that are made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sftknow.report.aggregate import Estimate, group_task, metric, phrase, source_title
from sftknow.report.contents import Report
from sftknow.report.layout import Entry

MINUS = "\N{MINUS SIGN}"
MANY_ROWS = 24
"""Tables with a line a model are shown closed beyond this."""


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage without its sign; not-a-number in words."""
    return f"{100 * share:.{digits}f}" if math.isfinite(share) else "undefined"


def signed(share: float) -> str:
    """A difference of shares in percentage points, always with its sign; one that rounds to nothing has ±."""
    text = f"{abs(100 * share):.1f}"
    if float(text) == 0:
        return f"±{text}"
    return f"+{text}" if share > 0 else f"{MINUS}{text}"


def plus_minus(number: float) -> str:
    """A coefficient with two decimals, always with its sign."""
    return f"{number:+.2f}".replace("-", MINUS)


def words(text: str) -> Entry:
    """An entry of words."""
    return Entry(text=text or "none")


def whole(number: int) -> Entry:
    """A count."""
    return Entry(text=f"{number:,}", value=int(number))


def share_entry(share: float, digits: int = 1) -> Entry:
    return Entry(text=percent(share, digits), value=100 * share if math.isfinite(share) else None)


def cell_title(report: Report, name: str) -> str:
    """A cell in words, such as ``bucket 2, 240 facts``; the seed is named where the run has several."""
    cell = report.cells.get(name)
    if cell is None:
        return name
    title = f"{source_title(cell.source, cell.bucket)}, {cell.size:,} facts"
    return f"{title}, seed {cell.seed}" if len({c.seed for c in report.cells.values()}) > 1 else title


def cell_phrase(report: Report, name: str) -> str:
    """A cell in running text, such as ``240 facts of bucket 2``; the seed is named where the run has several."""
    cell = report.cells.get(name)
    if cell is None:
        return name
    text = phrase(cell.source, cell.bucket, cell.size)
    return f"{text} (seed {cell.seed})" if len({c.seed for c in report.cells.values()}) > 1 else text


def scored_splits(report: Report, wanted: Sequence[str]) -> list[str]:
    """Those of the splits that at least one model was scored on."""
    return [s for s in wanted if any(metric(m, group_task(s)) for m in report.models.values())]


def estimate_entry(found: Estimate | None, *, best: bool = False, spread: bool = True) -> Entry:
    if found is None:
        return words("no questions")
    kind = "spread over seeds" if found.over_seeds else "standard error"
    return Entry(
        text=percent(found.value),
        note=f"± {percent(found.error)}" if spread else "",
        value=100 * found.value,
        extra={kind: 100 * found.error},
        strong=best,
    )
