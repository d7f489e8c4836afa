"""The paper's own tables where they are shown whole, beside the run's."""

from __future__ import annotations

from sftknow.records import BUCKETS
from sftknow.report.aggregate import SPLIT_TITLES
from sftknow.report.contents import Report
from sftknow.report.entries import words
from sftknow.report.layout import Column, Entry, Table
from sftknow.report.paper import distributions


def _by_size(model: tuple[str, object]) -> tuple[str, int]:
    """Sort key: the family, then the size in its name, such as ``LLaMA-2-13B``."""
    family, _, size = model[0].rpartition("-")
    return family, int(size.rstrip("B"))


def other_models(report: Report) -> Table | None:
    """Table 8: shares of the buckets for this run's base and for the paper's five models."""
    graded = report.graded
    if graded is None:
        return None
    lines = [(f"this run: {report.base_name or graded.graded_by}", {
        split: [counts[b] for b in BUCKETS] for split, counts in graded.counts.items() if sum(counts.values())
    })]  # fmt: skip
    lines += [(f"paper: {name}", dict(found)) for name, found in sorted(distributions().items(), key=_by_size)]
    splits = [s for s in ("train", "test", "testood") if s in lines[0][1]]
    if not splits:
        return None
    rows = []
    for place, (title, found) in enumerate(lines):
        entries = []
        for split in splits:
            total = sum(found[split])
            entries += [
                Entry(text=f"{100 * n / total:.1f}", value=100 * n / total, extra={"facts": float(n)}, strong=not place)
                for n in found[split]
            ]
        rows.append((words(title), *entries))
    return Table(
        id="table-8-models",
        title="Table 8 · Mastery of this base model and of the paper’s",
        note="Share of a split’s facts in each bucket. The paper’s are of EntityQuestions (75,944, 9,555 and 11,613 "
        "facts); a run on other facts is not to be compared number by number.",
        columns=(
            Column(title="Base model"),
            *(
                Column(title=f"{b}", group=f"{SPLIT_TITLES[s].capitalize()}, bucket (%)")
                for s in splits
                for b in BUCKETS
            ),
        ),
        rows=tuple(rows),
        stacked=True,
        folded=True,
    )
