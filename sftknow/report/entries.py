"""Numbers as the report shows them, and the entries of tables that are made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sftknow.report.aggregate import Estimate, estimate
from sftknow.report.contents import Model
from sftknow.report.layout import Entry
from sftknow.report.words import Difference

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


def plus_minus(number: float, digits: int = 2) -> str:
    """A coefficient, always with its sign."""
    return f"{number:+.{digits}f}".replace("-", MINUS)


def number_entry(value: float, digits: int = 2) -> Entry:
    """A number in the column's unit."""
    return Entry(text=f"{value:.{digits}f}", value=value)


def share_entry(share: float, digits: int = 1) -> Entry:
    """A share as a percentage."""
    return Entry(text=percent(share, digits), value=100 * share if math.isfinite(share) else None)


def interval_entry(value: float, low: float, high: float) -> Entry:
    """A divergence in nats with its interval."""
    return Entry(text=f"{value:.3f}", note=f"[{low:.3f}, {high:.3f}]", value=value, extra={"low": low, "high": high})


def estimate_entry(found: Estimate | None, *, best: bool = False) -> Entry:
    """An accuracy in percent with its error."""
    if found is None:
        return Entry(text="no questions")
    kind = "spread over seeds" if found.over_seeds else "standard error"
    return Entry(
        text=percent(found.value),
        note=f"± {percent(found.error)}",
        value=100 * found.value,
        extra={kind: 100 * found.error},
        strong=best,
    )


def accuracy_of(split: str, bucket: int | None, metric: str, models: Sequence[Model]) -> Entry:
    """The accuracy of a training, one model a seed."""
    return estimate_entry(estimate(models, split, bucket, metric))


def change_entry(difference: Difference | None) -> Entry | None:
    """A difference in points with its standard error."""
    if difference is None:
        return None
    return Entry(
        text=signed(difference.value),
        note=f"± {percent(difference.stderr)}",
        value=100 * difference.value,
        extra={"standard error": 100 * difference.stderr},
        difference=difference,
    )


def moved_entry(here: Estimate, moved: Difference | None) -> Entry:
    """An accuracy with its difference from another model, and its spread where there are several seeds."""
    spread = f"± {percent(here.error)}" if here.over_seeds else ""
    extra = {"spread over seeds": 100 * here.error} if here.over_seeds else {}
    if moved is None:
        return Entry(text=percent(here.value), note=spread, value=100 * here.value, extra=extra)
    return Entry(
        text=percent(here.value),
        note=f"{signed(moved.value)} {spread}".rstrip(),
        value=100 * here.value,
        extra={**extra, "difference": 100 * moved.value, "its standard error": 100 * moved.stderr},
        difference=moved,
    )
