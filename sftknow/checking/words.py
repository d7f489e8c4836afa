"""A check in words: one sentence, a page of text, Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sftknow.artifacts.checks import FATES, FINDINGS, CheckedFact, CheckResult
from sftknow.checking.kept import FEWEST, Kept
from sftknow.untrusted import markdown_line

_SHOWN, LISTED = 8, 50
"""Relations and facts that a terminal and a page list; the file has all."""


def sentence(tuned: str, kept: Kept | None, verdict: str, *, margin: float, more_facts: int | None) -> str:
    """The verdict in one sentence.

    Args:
        tuned: the tuned model's name.
        kept: from `sftknow.checking.kept.kept_share`.
        verdict: from `sftknow.checking.kept.verdict`.
        margin: points.
        more_facts: from `sftknow.checking.kept.facts_needed`.
    """
    if kept is None:
        return (
            "Cannot be told: the base completes none of these facts, so nothing can be lost; ask facts that it knows."
        )
    if kept.facts < FEWEST:
        return (
            f"Cannot be told: the base knows {kept.facts} of these facts, and {FEWEST} are needed; ask more facts, or "
            "facts that it knows."
        )
    what = f"{tuned} keeps {percent(kept.share)} of what the base knows (95 % interval {_interval(kept)})"
    if verdict == "kept":
        return f"No loss beyond {margin:g} points: {what}."
    if verdict == "lost":
        return f"Knowledge was lost, surely more than {margin:g} points: {what}."
    more = f"about {more_facts:,} more facts would tell" if more_facts else "more facts would not tell soon"
    return f"Cannot be told whether more than {margin:g} points were lost: {what}; {more}."


def lost_answers(tuned: str, kept: Kept | None, answers: Kept, *, margin: float) -> str:
    """The verdict where statements are completed about as before and questions are not answered as before."""
    line = (
        f"Answers were lost, surely more than {margin:g} points: asked as questions, {tuned} answers "
        f"{percent(answers.share)} of what the base answers (99 % interval {_interval(answers)})"
    )
    if kept is not None and kept.facts >= FEWEST:
        line += f", though it completes statements as {percent(kept.share)} of before ({_interval(kept)})"
    return line + "."


def text(result: CheckResult) -> str:
    """The whole result for a terminal."""
    return "\n".join(_lines(result))


def markdown(result: CheckResult) -> str:
    """The result as Markdown, made to be pasted into a pull request."""
    sign = {"kept": "✅", "lost": "❌", "open": "❔"}[result.verdict]
    lines = [
        f"**{sign} {quoted(result.sentence)}**",
        "",
        "| base knows it | facts | before | after |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {level(bucket)} | {facts:,} | {percent(before)} | {percent(after)} |"
        for bucket, facts, before, after in result.by_level
    ]
    lines += ["", "; ".join(_counts(result)) + f". {asked(result)}"]
    lost = worst_facts(result.facts)
    if lost:
        lines += ["", f"<details><summary>{len(lost)} facts that are surely known worse, or lost</summary>", ""]
        lines += ["| fact | before | after | asked again |", "| --- | ---: | ---: | --- |"]
        lines += [
            f"| {quoted(fact.subject)} ({fact.topic}): {quoted(fact.object)} | {fact.before} of {fact.tries} | "
            f"{fact.after} | {fact.finding or ''} |"
            for fact in lost[:LISTED]
        ]
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def _lines(result: CheckResult) -> Iterator[str]:
    yield result.sentence
    yield ""
    yield f"base   {result.base}"
    yield f"tuned  {result.tuned}"
    yield asked(result)
    yield from result.notes
    yield ""
    yield "facts by any hit before and after: " + ", ".join(_counts(result))
    yield ""
    yield "how well a fact is known, by how well the base knows it (told by the other half of its statements)"
    yield f"  {'base knows it':<16}{'facts':>7}{'before':>10}{'after':>10}"
    for bucket, facts, before, after in result.by_level:
        yield f"  {level(bucket):<16}{facts:>7,}{percent(before):>10}{percent(after):>10}"
    yield ""
    yield "facts by bucket before (down) and after (across)"
    yield "  " + " " * 8 + "".join(f"{bucket:>7}" for bucket in range(5))
    for bucket, row in enumerate(result.flow()):
        yield f"  {bucket:>8}" + "".join(f"{count:>7,}" for count in row)
    if result.questions is not None:
        before, after, count = result.questions
        form = "the tuned model in its own chat template" if result.chat else "Question: … Answer:"
        yield ""
        yield f"asked as questions ({form}): {percent(before)} before, {percent(after)} after, {count:,} facts"
    worst = sorted(result.by_relation.items(), key=lambda item: item[1][2] - item[1][1])
    if worst:
        yield ""
        yield f"relations that lost most (of {len(worst)})"
        yield f"  {'relation':<16}{'facts':>7}{'before':>10}{'after':>10}"
        for relation, (facts, before, after) in worst[:_SHOWN]:
            yield f"  {relation:<16}{facts:>7,}{percent(before):>10}{percent(after):>10}"
    again = [fact for fact in result.facts if fact.finding]
    if again:
        found = ", ".join(f"{sum(fact.finding == one for fact in again)} {one}" for one in FINDINGS)
        yield ""
        yield f"facts that are lost or surely known worse, asked again in other ways ({len(again)}): {found}"
        for fact in worst_facts(again)[:_SHOWN]:
            yield (
                f"  {fact.subject} ({fact.topic}): {fact.object}   {fact.before} → {fact.after} of {fact.tries}   "
                f"{fact.finding}: {fact.text!r}"
            )


def worst_facts(facts: Sequence[CheckedFact]) -> list[CheckedFact]:
    """Facts that are lost or surely worse, those that lost most first."""
    found = [fact for fact in facts if fact.worse or fact.fate == "lost"]
    return sorted(found, key=lambda fact: (-(fact.before - fact.after) / fact.tries, fact.id))


def _counts(result: CheckResult) -> list[str]:
    return [f"{fate} {result.count(fate):,}" for fate in FATES]


def asked(result: CheckResult) -> str:
    """How much was asked, in one line."""
    tries = sum(fact.tries for fact in result.facts)
    minutes, seconds = divmod(round(result.seconds), 60)
    return (
        f"{len(result.facts):,} of {result.facts_available:,} facts ({result.facts_source}), {tries:,} completions of "
        f"each model, {minutes} min {seconds} s; {sum(fact.worse for fact in result.facts):,} facts are surely known "
        "worse, each tested by itself"
    )


def level(bucket: int) -> str:
    """How well facts of a bucket are known, as a share of tries."""
    return "never" if bucket == 0 else f"{25 * (bucket - 1)} to {25 * bucket} %"


def percent(share: float) -> str:
    """As text, with one digit."""
    return f"{100 * share:.1f} %"


def _interval(kept: Kept) -> str:
    return f"{100 * kept.low:.1f} to {100 * kept.high:.1f}"


def quoted(text: str) -> str:
    """Without what Markdown or HTML would take for its own, on one line."""
    return markdown_line(text, "*_")
