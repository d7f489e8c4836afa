"""The page of an arena: one sentence that answers, the front as a picture, the tables, and all of it as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sftknow.artifacts.arena import NOTHING, read_arena
from sftknow.artifacts.files import write_json, write_text
from sftknow.report.arena.contest import BOUGHT, IDLE, IS_PLAIN, Contest, Standing, added, contenders, contest, interval
from sftknow.report.arena.field import FORMS, PLAIN, Field, Method
from sftknow.report.arena.picture import picture
from sftknow.report.arena.tables import added_table, front_page, pairs_table, ranking_table, rivalry_table
from sftknow.report.arena.worth_of_ranking import MEASURES, rivalries, verdict
from sftknow.report.compose import content_of, render
from sftknow.report.contents import Missing
from sftknow.report.entries import percent, signed
from sftknow.report.gaps import asked_cells
from sftknow.report.layout import Block, Figure, Section
from sftknow.report.words import RULE, Difference, hedge

FORMAT = 1
"""Version of the layout of ``arena.json``."""
NAME = "arena"
"""Name of the files in the folder ``report`` of a run."""
GLOSSARY = {
    "Learned": "training facts that are answered right in wording that was not trained on, less those that the base "
    "answers right.",
    "Kept": "facts that the base knew (buckets 1 to 4), none of them trained on, that are still right: mean over the "
    "buckets; statements to complete, and questions apart.",
    "Plain’s line": "plain fine-tuning moved back towards its base by interpolation of all weights. It costs nothing "
    "but a choice, so a method is worth what it keeps beyond that line.",
    "At equal learning": "what a method keeps less what plain’s line keeps where it has learned as much. A method that "
    "learned more than the whole line is compared with the line’s end.",
}
FOOTER = "Beside this page lie arena.json with every number and every pair, arena.md, and arena.svg."
FEW_MODELS = "Nothing is measured yet that could be compared: the arena needs the base, plain fine-tuning and a method."


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the files hold."""

    results: dict[str, Any]
    """The content of ``arena.json``."""
    page: str
    figure: Figure | None


def write(run: Path) -> None:
    """Write ``report/arena.html``, ``arena.json``, ``arena.md`` and ``arena.svg`` of a run from ``arena/*.json``.

    A partial arena gives a partial page that says what is missing. Without two models that could be drawn there is no
    picture. The page is written last.

    Raises:
        RunError: a file of the arena is damaged.
    """
    content, out = compose(run), run / "report"
    if content.figure:
        write_text(out / f"{NAME}.svg", content.figure.panels[0].svg)
    write_text(out / f"{NAME}.md", f"{content.results['answer']}\n\n{content.results['front_page']}\n")
    write_json(out / f"{NAME}.json", content.results)
    write_text(out / f"{NAME}.html", content.page)


def compose(run: Path) -> Content:
    """What `write` writes, from the arena of a run; nothing is written.

    Raises:
        RunError: a file of the arena is damaged.
    """
    entries = read_arena(run)
    field = Field.of(entry for found in entries.values() for entry in found)
    found = {form: contest(field, contenders(field), form) for form in FORMS}
    head = found[FORMS[0]]
    rivals = {measure: rivalries(field, measure) for measure in MEASURES}
    judged = {measure: verdict(r) for measure, r in rivals.items()}
    after = added(field, FORMS[0])
    drawn = picture(field, head)
    tables: dict[str, list[Block | None]] = {
        "methods": [ranking_table(field, head), ranking_table(field, found[FORMS[1]]), pairs_table(head)],
        "ranking": [rivalry_table(rivals[measure], judged[measure]) for measure in MEASURES],
        "after": [added_table(after)],
    }
    sections = _sections({name: [b for b in blocks if b] for name, blocks in tables.items()}, field)
    said = sentences(field, found, {m: (v.word, v.why) for m, v in judged.items()})
    missing = _missing(run, field, set(entries))
    shown = [Section(id="front", title="Front", intro="", blocks=(drawn,)), *sections] if drawn else sections
    results: dict[str, Any] = {
        "format": FORMAT,
        "run": run.resolve().name,
        "seeds": list(field.seeds),
        "trained_on": [kind.title for kind in field.kinds],
        "answer": answer(field, head),
        "words": said,
        "front_page": front_page(head),
        "alt": drawn.panels[0].alt if drawn else None,
        "methods": {form: [_method(s) for s in c.standings] for form, c in found.items()},
        "pairs": [
            {
                "first": p.first.title,
                "second": p.second.title,
                "comparable": p.comparable,
                **p.found.part(),
                "sure": p.sure,
            }
            for p in head.pairs
        ],
        "added": [
            {
                "strategy": a.strategy,
                "after": a.after,
                "judged": a.judged,
                **a.found.part(),
                "sure": a.judged and a.found.sure,
            }
            for a in after
        ],
        "ranking": {
            measure: {
                "word": judged[measure].word,
                "why": judged[measure].why,
                "rivals": [{"rival": r.rival, "equal": r.equal, "levels": r.levels, **r.found.part()} for r in rs],
            }
            for measure, rs in rivals.items()
        },
        "missing": [{"what": gap.what, "where": gap.where} for gap in missing],
        **content_of(shown),
    }
    page = render(
        name=f"{results['run']}, arena",
        subtitle="",
        sentence=results["answer"],
        first=drawn,
        words=(),
        advice=said,
        missing=missing,
        sections=sections,
        glossary=GLOSSARY,
        aside="What wins, and what cannot be told",
        footer=FOOTER,
    )
    return Content(results=results, page=page, figure=drawn)


def _sections(blocks: Mapping[str, Sequence[Block]], field: Field) -> list[Section]:
    where = "; ".join(kind.title for kind in field.kinds)
    titles = {
        "methods": (
            "Methods, ranked",
            f"Every way to train, and every method after plain fine-tuning. Trained on: {where}.",
        ),
        "ranking": (
            "Is the ranking worth anything?",
            "Restoring the weights that changed most relative to their size, beside other ways back towards the base: "
            "the same share of the weights set back, or as far from the base (L2 distance of all weights).",
        ),
        "after": ("Strategies with a method afterwards", "Does a cure help where prevention was tried?"),
    }
    found = [
        Section(id=name, title=title, intro=intro, blocks=tuple(blocks[name]), open=name != "after")
        for name, (title, intro) in titles.items()
        if blocks[name]
    ]
    return [*found, Section(id="sure", title="How sure the words are", intro=RULE)]


def _method(s: Standing) -> dict[str, Any]:
    return {
        "method": s.method.title,
        "strategy": s.method.strategy,
        "after": s.method.after,
        "word": s.word,
        "judged": s.judged,
        "kept_at_equal_learning": _part(s.found),
        "by_seed": {str(seed): value for seed, value in s.worth.by_seed().items()},
        "learns_more_than_plain": s.worth.beyond,
        "learned": _part(s.learned),
        "kept": {form: _part(d) for form, d in s.kept.items()},
        **s.means,
        "models": s.models,
        "models_that_do_nothing": s.idle,
        "models_that_are_plain": s.plain,
    }


def _part(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    ends = interval(found)
    return {**found.part(), "seeds": found.draws, "low": ends and ends[0], "high": ends and ends[1]}


def answer(field: Field, found: Contest) -> str:
    """One sentence: what wins, by how much, and how sure."""
    best, over, ahead = found.winner, found.over_line, found.ahead
    if best is None or best.found is None or over is None:
        return FEW_MODELS
    many, seeds = len(found.entrants), f"{best.found.draws} seed{'s' if best.found.draws != 1 else ''}"
    if not over.sure or over.value < 0:
        doubt = hedge(over.part()).strip(" ()") if over.value > 0 else "not even by its mean"
        return (
            f"Of {many} methods none surely keeps more than plain fine-tuning that is moved back towards its base, at "
            f"equal learning, over {seeds}: the best by its mean is {best.method.title}, with {signed(over.value)} "
            f"points ({doubt})."
        )
    said = (
        f"{best.method.title} keeps most at equal learning, surely: {signed(over.value)} points of what the base knew "
        f"beyond plain fine-tuning moved back towards its base, over {seeds} and corrected for {many} methods"
    )
    if ahead is None:
        return f"{said}."
    second, by = ahead
    if by.sure:
        return f"{said}; it is surely ahead of the runner-up {second.method.title} ({signed(by.value)} points)."
    gap = f"{second.method.title} ({signed(by.value)} points)"
    return f"{said}; whether it is ahead of the runner-up {gap} cannot be told."


def sentences(field: Field, found: Mapping[str, Contest], judged: Mapping[str, tuple[str, str]]) -> list[str]:
    """What else is found, each as a label and what is said."""
    head = found[FORMS[0]]
    by_method = {s.method: s for s in head.standings}
    said = [_forgetting(field, by_method.get(Method(PLAIN)))]
    best = head.winner
    if best:
        said += _winner(head, best, by_method.get(Method(PLAIN)))
    if best is None or best.found is None or best.found.few:
        return [s for s in (*said, "One seed: nothing more can be said.") if s]
    for verb, more in (("Surely keep more", True), ("Surely keep less", False)):
        names = [s.method.title for s in head.entrants if s.found and s.found.sure and (s.found.value > 0) == more]
        said.append(f"{verb} than plain’s line: {', '.join(names) or 'none'}.")
    untold = [s for s in head.entrants if s.found and not s.found.sure]
    if untold:
        few = "" if len(untold) > 8 else f": {', '.join(s.method.title for s in untold)}"
        said.append(f"Cannot be told from plain’s line: {len(untold)} of {len(head.entrants)} methods{few}.")
    labels = {
        IDLE: "Do nothing",
        IS_PLAIN: "Are plain fine-tuning",
        BOUGHT: "Learn more and keep less than plain, which is neither better nor worse",
    }
    for word, label in labels.items():
        names = [s.method.title for s in head.standings if s.word == word]
        said += [f"{label}: {', '.join(names)}."] if names else []
    questions = found[FORMS[1]]
    sure = [s.method.title for s in questions.entrants if s.found and s.found.sure and s.found.value > 0]
    if questions.entrants:
        said.append(f"By questions instead of statements: surely more keep {', '.join(sure) or 'none'}.")
    for measure, (word, why) in judged.items():
        said.append(
            f"The ranking, by {MEASURES[measure]}: that it is worth something {word}; {why[0].lower()}{why[1:]}"
        )
    return [s for s in said if s]


def _forgetting(field: Field, plain: Standing | None) -> str:
    base = [v[FORMS[0]] for v in field.base.values() if FORMS[0] in v]
    kept = plain.kept.get(FORMS[0]) if plain else None
    if plain is None or kept is None or plain.learned is None or not base:
        return ""
    before = sum(base) / len(base)
    return (
        f"Plain fine-tuning: it learns {signed(plain.learned.value)} points and keeps {percent(kept.value)} % of the "
        f"statements where the base gets {percent(before)} % right ({signed(kept.value - before)} points)."
    )


def _winner(head: Contest, best: Standing, plain: Standing | None) -> list[str]:
    kept, learned = best.kept.get(head.form), best.learned
    said = []
    if kept and learned and best.found:
        ends = interval(best.found, len(head.entrants))
        wide = f", interval [{signed(ends[0])}, {signed(ends[1])}] for all methods at once" if ends else ""
        there = f" of plain’s {signed(plain.learned.value)}" if plain and plain.learned else ""
        cost = f", in {best.means['time']:.2f} times the time of plain fine-tuning" if "time" in best.means else ""
        said.append(
            f"First by its mean: {best.method.title}, {signed(best.found.value)} points at equal learning{wide}. It "
            f"learns {signed(learned.value)} points{there} and keeps {percent(kept.value)} %{cost}."
        )
    level = head.level_with_winner
    if level and best.found and not best.found.few:
        names = ", ".join(m.title for m in level[:6]) + (f" and {len(level) - 6} more" if len(level) > 6 else "")
        said.append(f"Not told apart from it: {names}.")
    picked = head.picked_on_others()
    if picked:
        said.append(
            f"Chosen without looking: the method that is first on all other seeds keeps {signed(picked.value)} points "
            "on the seed left out, on average; that is the gain to expect of choosing by such a table."
        )
    return said


def _missing(run: Path, field: Field, cells: set[str]) -> list[Missing]:
    """Cells that the recipe asks for and the arena does not have; strategies that lack seeds which others have."""
    gaps = []
    recipe = run / "recipe.yaml"
    content = yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe.is_file() else None
    if not field.bases:
        gaps.append(Missing(what="the base", where="arena/base.json"))
    strategies = {m.strategy for m in field.chosen if m.after == NOTHING}
    asked = [name for name in asked_cells(content) if name not in cells and _in_arena(name, content or {})]
    if asked:
        some = ", ".join(asked[:8]) + (f" and {len(asked) - 8} more" if len(asked) > 8 else "")
        gaps.append(Missing(what=f"{len(asked)} trained models: {some}", where="arena/<cell>.json"))
        return gaps
    for strategy in sorted(strategies):
        for kind in field.kinds:
            have = field.at(Method(strategy), kind)
            lacking = [str(seed) for seed in field.seeds if seed not in have]
            if lacking:
                what = f"{strategy}, {kind.title}: seeds {', '.join(lacking)}"
                gaps.append(Missing(what=what, where="arena/<cell>.json"))
    return gaps


def _in_arena(name: str, recipe: Mapping[str, Any]) -> bool:
    """Whether a cell is one that the recipe's arena measures."""
    section = recipe.get("arena") or {}
    drawn = [str(of) for of in [*(section.get("of") or ()), *(section.get("ranking_of") or ())]]
    source = name.partition("-n")[0]
    bucket = source.rpartition("b")[2] if source.rpartition("b")[2].isdigit() else "mixed"
    return not drawn or bucket in drawn
