"""Check what a tuned model still knows of what its base knows; used by `sftknow check` and `sftknow.check`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sftknow.artifacts.checks import CheckedFact, CheckResult, write_check
from sftknow.artifacts.stages import RunDirectory
from sftknow.checking.kept import (
    by_level,
    facts_needed,
    kept_answers,
    kept_share,
    surely_worse,
    verdict,
)
from sftknow.checking.options import CheckOptions
from sftknow.checking.words import lost_answers, sentence
from sftknow.facts.sources import balanced
from sftknow.models.options import ModelOptions
from sftknow.parameters.outputs import refuse_within
from sftknow.recipes.schema import FactsSection
from sftknow.resources import cache_folder
from sftknow.run.asking import FOR_RETRY, Asking, Say
from sftknow.run.sides import CHAT_BASE, Material, load_sides, resolve_sides
from sftknow.stats import bucket_of

_QUESTIONS = 400
"""Most facts that are also asked as questions."""


def check(
    base: str | Path,
    tuned: str | Path,
    *,
    facts: str | Path | FactsSection = "quick",
    options: CheckOptions | None = None,
    running: ModelOptions | None = None,
    out: str | Path | None = None,
    any_pair: bool = False,
    say: Say = lambda line: print(line, file=sys.stderr, flush=True),
) -> CheckResult:
    """Ask both models the same facts in the same statements with the same random numbers.

    The statements are those of the paper's grading (3.3), so the form of answers that fine-tuning taught plays no part.
    Facts are added in blocks, balanced over the relations, until the interval is narrow enough, the verdict is beyond
    doubt (`sftknow.checking.kept.plain_already`) or the time is used. Facts that are lost are asked again, with solved
    examples before them, as questions and in all statements.

    Args:
        base: a folder, ``org/name`` or ``org/name@revision`` on the Hub, or ``lab``.
        tuned: the same, or a LoRA adapter of ``base``; with the same tokenizer or another.
        facts: as `load_facts` takes them, or a `FactsSection` with limit, columns, topics and synonyms.
        options: how exact, how long; what counts as a loss.
        running: device and dtype.
        out: where ``check.json`` goes and finished blocks lie; None keeps the blocks in the user's cache, so that the
            same check goes on there too.
        any_pair: take a tuned model that was not made from this base.
        say: gets a line now and then.

    Raises:
        ModelError, CheckpointError, HubError: a model cannot be loaded, or the tuned one was not made from the base.
        FactsError: the facts cannot be used.
        RunError: another process checks in the same folder.
    """
    options, running = options or CheckOptions(), running or ModelOptions()
    base, tuned, out = str(base), str(tuned), Path(out).expanduser() if out else None
    material = Material.load(facts)
    models, notes = resolve_sides(base, tuned, running, any_pair=any_pair)
    if out is not None:
        refuse_within(out, [Path(model.ref.path) for model in models])
    key = material.key(models, options)
    work = (out or cache_folder() / "checks" / key[:16]) / "work"
    with RunDirectory(work):
        folders = [work / name / key[:16] for name in ("before", "after")]
        sides = load_sides(models, (base, tuned), folders, material, options, running.device)
        if sides[0].chat:
            notes.append(CHAT_BASE)
        asking = Asking(sides, balanced(material.facts, options.seed), material.topics, options, work, say)
        asking.statements(options)
        result = _result(asking, options, base, tuned, material.source, notes)
    if out is not None:
        write_check(out, result)
    return result


def _result(
    asking: Asking, options: CheckOptions, base: str, tuned: str, source: str, notes: Sequence[str]
) -> CheckResult:
    """Everything that was found; asks the lost facts again first."""
    hits = asking.hits()
    worse = surely_worse(hits.before, hits.after, hits.tries)
    before, after, tries = hits.before.sum(1), hits.after.sum(1), hits.tries.sum(1)
    lost = [int(i) for i in np.flatnonzero(worse | ((before > 0) & (after == 0)))]
    lost = sorted(lost, key=lambda i: (-(before[i] - after[i]) / tries[i], asking.asked[i].id))[: options.retry]
    right = asking.answers(asking.asked[:_QUESTIONS], 1 - FOR_RETRY / 2)
    questions = int(np.isfinite(right).all(axis=0).sum())
    found = asking.again(lost, hits)
    if len(found) < len(lost):
        left = len(lost) - len(found)
        notes = [*notes, f"the time was over before {left:,} of {len(lost):,} lost facts were asked again"]
    first, second = bucket_of(before, tries), bucket_of(after, tries)
    kept, margin = kept_share(hits), options.margin / 100
    decided, answers = verdict(kept, margin), kept_answers(hits, *right)
    same = asking.sides[0].model.sha256 == asking.sides[1].model.sha256
    if same and kept is not None and kept.share == 1:
        decided = "kept"  # few facts are enough: there is nothing that could have changed
    unanswered = decided != "lost" and verdict(answers, margin) == "lost"
    more = facts_needed(kept, margin, len(asking.asked)) if kept is not None and decided == "open" else None
    relations: dict[str, tuple[int, float, float]] = {}
    for topic in dict.fromkeys(fact.topic for fact in asking.asked):
        rows = np.array([fact.topic == topic for fact in asking.asked])
        relations[topic] = (
            int(rows.sum()),
            float((before / tries)[rows].mean()),
            float((after / tries)[rows].mean()),
        )
    told = kept is not None and np.isfinite(kept.low)
    asking.limit.keep()
    return CheckResult(
        base=base,
        tuned=tuned,
        facts_source=source,
        facts_available=len(asking.facts),
        verdict="lost" if unanswered else decided,
        sentence=lost_answers(tuned, kept, answers, margin=options.margin)
        if unanswered and answers is not None
        else sentence(tuned, kept, decided, margin=options.margin, more_facts=more),
        kept=None if kept is None else kept.share,
        low=kept.low if kept is not None and told else None,
        high=kept.high if kept is not None and told else None,
        known=0 if kept is None else kept.facts,
        margin=options.margin,
        precision=options.precision,
        more_facts=more,
        seconds=round(asking.seconds, 1),
        by_level=tuple(by_level(hits)),
        by_relation=relations,
        questions=(float(np.nanmean(right[0])), float(np.nanmean(right[1])), questions) if questions else None,
        chat=asking.sides[1].chat,
        facts=tuple(
            CheckedFact(
                id=fact.id,
                topic=fact.topic,
                subject=fact.subject,
                object=fact.object,
                tries=int(tries[row]),
                before=int(before[row]),
                after=int(after[row]),
                bucket_before=int(first[row]),
                bucket_after=int(second[row]),
                worse=bool(worse[row]),
                finding=found[fact.id][0] if fact.id in found else None,
                text=found[fact.id][1].strip() if fact.id in found else "",
            )
            for row, fact in enumerate(asking.asked)
        ),
        options=options.settings(),
        notes=tuple(notes),
    )
