"""The tables of an arena's page."""

from __future__ import annotations

from collections.abc import Sequence

from sftknow.artifacts.arena import NOTHING
from sftknow.report.arena.contest import Added, Contest, Standing, interval
from sftknow.report.arena.field import PLAIN, Field, Method
from sftknow.report.arena.worth_of_ranking import MEASURES, Rivalry
from sftknow.report.entries import change_entry, percent, signed
from sftknow.report.layout import Entry, Field as Column, Table, tabulate
from sftknow.report.verdicts import Verdict
from sftknow.report.words import TONES, Difference


def worth_entry(found: Difference | None, *, judged: bool = True) -> Entry | None:
    """A mean over seeds in points with its 95 % interval."""
    if found is None:
        return None
    ends = interval(found)
    return Entry(
        text=signed(found.value),
        note=f"[{signed(ends[0])}, {signed(ends[1])}]" if ends else "one seed",
        value=100 * found.value,
        extra={"low": 100 * ends[0], "high": 100 * ends[1]} if ends else {},
        difference=found if judged else None,
    )


def mean_entry(found: Difference | None, *, sign: bool = False) -> Entry | None:
    """A mean over seeds in per cent, or in points with its sign, with its standard error."""
    if found is None:
        return None
    known = (found.draws or 0) > 1
    return Entry(
        text=signed(found.value) if sign else percent(found.value),
        note=f"± {percent(found.stderr)}" if known else "",
        value=100 * found.value,
        extra={"standard error": 100 * found.stderr} if known else {},
    )


def _number(s: Standing, name: str, scale: float = 1.0, digits: int = 1) -> Entry | None:
    value = s.means.get(name)
    return None if value is None else Entry(text=f"{scale * value:.{digits}f}", value=scale * value)


def ranking_table(field: Field, found: Contest) -> Table | None:
    """Every way to train and every method after plain fine-tuning, by what it keeps at equal learning."""
    ranks = {s.method: rank for rank, s in enumerate(found.standings, start=1)}
    headline = found.form == "statements"
    detail = (
        Column[Standing]("Out of domain", lambda s: _number(s, "ood", 100), unit="%", absent="not measured"),
        Column[Standing]("KL", lambda s: _number(s, "kl", digits=3), unit="nats", absent="not measured"),
        Column[Standing]("Changed", lambda s: _number(s, "changed", 100), unit="% of weights", absent="not measured"),
        Column[Standing]("Time", lambda s: _number(s, "time", digits=2), unit="× plain", absent="not measured"),
        Column[Standing]("Memory", lambda s: _number(s, "memory", digits=2), unit="× plain", absent="not measured"),
    )
    return tabulate(
        found.standings,
        Column("Method", lambda s: f"{ranks[s.method]} · {s.method.title}"),
        Column("Kept at equal learning", lambda s: worth_entry(s.found, judged=s.judged), unit="points"),
        Column("Said", lambda s: s.word),
        Column("Learned", lambda s: mean_entry(s.learned, sign=True), unit="points", absent="not measured"),
        Column("Kept", lambda s: mean_entry(s.kept.get(found.form)), unit="%", absent="not measured"),
        *(detail if headline else ()),
        Column("Seeds", lambda s: (s.found.draws if s.found else None) or 0),
        id=f"arena-{found.form}",
        title=f"Kept {found.form}, at equal learning",
        note=f"Kept at equal learning: {found.form} of buckets 1 to 4 that are right, beyond what plain fine-tuning "
        "keeps that was moved towards its base until it has learned as much; in brackets the 95 % interval over seeds "
        "(Student’s t), of each line by itself. The words and colours are corrected for all lines. "
        f"{_base_words(field, found.form)}{TONES}",
        stacked=True,
        folded=not headline,
    )


def _base_words(field: Field, form: str) -> str:
    values = [v[form] for v in field.base.values() if form in v]
    return f"The base gets {percent(sum(values) / len(values))} % right. " if values else ""


def pairs_table(found: Contest) -> Table | None:
    """For each method, which others it is told apart from."""

    def names(method: Method, over: bool) -> str:
        sure = [p for p in found.pairs if p.sure and (p.first if (p.found.value > 0) == over else p.second) == method]
        others = [(p.second if p.first == method else p.first).title for p in sure]
        return ", ".join(others) or "none"

    return tabulate(
        found.entrants,
        Column("Method", lambda s: s.method.title),
        Column("Surely keeps more than", lambda s: names(s.method, True)),
        Column("Surely keeps less than", lambda s: names(s.method, False)),
        id="arena-pairs",
        title="Which methods are told apart",
        note=f"Paired differences over seeds of what is kept at equal learning, corrected for all {len(found.pairs)} "
        "pairs (Holm). What stands in neither column cannot be told. arena.json has every pair.",
        words=True,
        folded=True,
    )


def added_table(found: Sequence[Added]) -> Table | None:
    """What each method afterwards adds to each strategy."""
    cells = {(a.strategy, a.after): a for a in found}
    afters = list(dict.fromkeys(a.after for a in found))

    def entry(strategy: str, after: str) -> Entry | None:
        a = cells.get((strategy, after))
        if a is None:
            return None
        shown = change_entry(a.found) if (a.found.draws or 0) > 1 else worth_entry(a.found)
        return shown if a.judged or shown is None else worth_entry(a.found, judged=False)

    return tabulate(
        sorted({a.strategy for a in found}),
        Column("Strategy", lambda strategy: strategy),
        *(Column(after, lambda s, after=after: entry(s, after), unit="points") for after in afters),  # type: ignore[misc]
        id="arena-added",
        title="What a method afterwards adds to each strategy",
        note="Kept statements at equal learning with the method, at the level chosen on dev, less without it; ± one "
        f"standard error over seeds. {TONES}",
        stacked=True,
        folded=True,
    )


def rivalry_table(found: Sequence[Rivalry], verdict: Verdict) -> Table | None:
    """Restoring by relative change less each rival: pooled, and for every kind of training."""
    if not found:
        return None
    kinds = list(dict.fromkeys(kind for rivalry in found for kind in rivalry.values))
    effects = {effect.name: effect for effect in verdict.effects}
    measure = found[0].measure
    levels = f"; means over the levels {', '.join(found[0].levels)}" if found[0].levels else ""

    def pooled(rivalry: Rivalry) -> Entry:
        e = effects[rivalry.name]
        known = e.seeds > 1
        note = f"[{signed(e.low)}, {signed(e.high)}]" if known else "one seed"
        tone = "up-mid" if e.above else "down-mid" if e.below else ""
        extra = {"low": 100 * e.low, "high": 100 * e.high} if known else {}
        return Entry(text=signed(e.value), note=note, value=100 * e.value, extra=extra, tone=tone, strong=True)

    def single(rivalry: Rivalry, place: int) -> Entry | None:
        d = rivalry.of(kinds[place])
        return change_entry(d) if d and (d.draws or 0) > 1 else worth_entry(d)

    return tabulate(
        found,
        Column("Restoring by relative change, less", lambda r: r.name),
        Column("All", pooled, unit="points"),
        *(
            Column(kind.title, lambda r, place=place: single(r, place), unit="points", absent="not measured")  # type: ignore[misc]
            for place, kind in enumerate(kinds)
        ),
        id=f"arena-ranking-{measure}",
        title=f"Is it the ranking? {MEASURES[measure][0].upper()}{MEASURES[measure][1:]}",
        note=f"After plain fine-tuning{levels}. All: mean over the kinds "
        "of training, with intervals over seeds that hold together with 95 % (Bonferroni). The others: ± one standard "
        f"error over seeds. {TONES}",
        stacked=True,
    )


def front_page(found: Contest) -> str:
    """Five lines of Markdown: the winner, the paper's cure (or the runner-up, where that is the winner), and plain
    fine-tuning."""
    by_method = {s.method: s for s in found.standings}
    wanted = [s.method for s in found.entrants[:1]]
    cure = Method(PLAIN, "relative")
    wanted += [cure] if cure in by_method and cure not in wanted else [s.method for s in found.entrants[1:2]]
    wanted += [m for m in (Method(PLAIN),) if m in by_method]
    rows = []
    for method in wanted:
        s = by_method[method]
        kept, time = s.kept.get(found.form), s.means.get("time")
        worth = worth_entry(s.found)
        rows.append(
            (
                _words(method),
                signed(s.learned.value) if s.learned else "not measured",
                percent(kept.value) if kept else "not measured",
                f"{worth.whole}, {s.word}" if worth and method != Method(PLAIN) else "±0.0, by definition",
                "not measured" if time is None else f"{time:.2f}",
            )
        )
    head = ("Fine-tuning", "Learned (points)", "Kept (%)", "Kept at equal learning (points)", "Time (× plain)")
    lines = [head, (":--", "--:", "--:", ":--", "--:"), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _words(method: Method) -> str:
    if method == Method(PLAIN):
        return "plain"
    return f"`{method.strategy}`" if method.after == NOTHING else f"{method.strategy}, then `{method.after}`"
