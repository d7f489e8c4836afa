"""A repair in words: one sentence, a page of text, Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from sftknow.artifacts.repairs import Estimate, RepairResult, Trial
from sftknow.checking.kept import FEWEST
from sftknow.checking.words import quoted
from sftknow.untrusted import printable


def few_known(choosing: int, confirming: int) -> str:
    """The sentence where the base knows too few of the facts."""
    if not choosing + confirming:
        return (
            "Cannot be told: the base completes none of these facts, so nothing can be lost; ask facts that it knows."
        )
    return (
        f"Cannot be told: of the facts that the base knows, {choosing} are there to choose and {confirming} to "
        f"confirm, and {FEWEST} of each are needed; ask more facts, or facts that it knows."
    )


def out_of_time(chosen: str, minutes: float) -> str:
    """The sentence where the time was over before the chosen candidate could be confirmed."""
    return (
        f"Cannot be told: {minutes:g} min were over before {chosen}, the best candidate in the choice, was confirmed "
        "on other facts; give more --minutes, and what was asked is not asked again."
    )


def nothing_lost(tuned: str, kept: Estimate | None, margin: float) -> str:
    """The sentence where there is nothing to repair."""
    if kept is None:
        return f"Nothing to repair: {tuned} has the weights of its base."
    return (
        f"Nothing to repair: {tuned} has no loss beyond {margin:g} points; it keeps {kept.value:.1f} % of what the "
        f"base knows{_interval(kept)}."
    )


def none_chosen(sure: bool, tried: int, keep: str, keep_margin: float, best: Trial | None) -> str:
    """The sentence where no candidate was chosen."""
    line = (
        "Nothing helps" if sure else "Cannot be told whether anything helps"
    ) + f": of {tried} candidates none gains and loses less than {keep_margin:g} points of {keep}"
    if best is not None and best.gain is not None:
        line += f"; the largest gain, {best.name}, is {best.gain.value:+.1f} points{_interval(best.gain)}"
        if best.task is not None:
            line += f" at {best.task.value:+.1f} points of that{_interval(best.task)}"
    return line + "."


def outcome(
    verdict: str,
    chosen: Trial,
    gain: Estimate,
    before: Estimate,
    after: Estimate,
    task: Estimate | None,
    keep: str,
    margin: float,
    more: int | None,
) -> str:
    """The verdict on the chosen candidate in one sentence."""
    what = f"{chosen.name} ({chosen.words})"
    found = (
        f"{gain.value:+.1f} points{_interval(gain)}, from {before.value:.1f} to {after.value:.1f} % of what the base "
        f"knows, on {gain.count:,} facts that no choice has seen"
    )
    paid = "" if task is None else f"; {keep}: {task.value:+.1f} points{_interval(task)}"
    if verdict == "repaired":
        return f"Repaired by {what}: {found}{paid}."
    if verdict == "no help":
        why = "surely less than" if gain.high is not None and gain.high < margin else "not without losing"
        end = f"{margin:g} points are brought back" if why.startswith("surely") else f"more than allowed of {keep}"
        return f"Nothing helps: the best candidate is {what}, {why} {end}: {found}{paid}."
    doubt = f"keeps {keep}" if gain.low is not None and gain.low > 0 else "helps"
    line = f"Cannot be told whether it {doubt}: the best candidate is {what}: {found}{paid}"
    return f"{line}; about {more:,} more facts would tell." if more else f"{line}."


def against_random(chosen: str, random: str, beyond: Estimate) -> str:
    """Whether restoring at random does as well."""
    difference = f"{beyond.value:+.1f} points{_interval(beyond)} on the same facts"
    if beyond.low is None or beyond.high is None:
        return f"too few facts to tell {chosen} from restoration at random ({random})"
    if beyond.low > 0:
        return f"{chosen} is surely better than restoration at random ({random}): {difference}"
    if beyond.high < 0:
        return f"restoration at random ({random}) is surely better than {chosen}: {difference}"
    return f"restoration at random ({random}) does as well as {chosen}, as far as these facts can tell: {difference}"


def text(result: RepairResult) -> str:
    """The whole result for a terminal."""
    return "\n".join(_lines(result))


def markdown(result: RepairResult) -> str:
    """The result as Markdown, made to be pasted into a pull request."""
    sign = {"nothing lost": "✅", "repaired": "✅", "no help": "❌", "open": "❔"}[result.verdict]
    lines = [f"**{sign} {quoted(result.sentence)}**", ""]
    if result.trials:
        lines += ["| candidate | gain | task | facts | rounds |", "| --- | ---: | ---: | ---: | ---: |"]
        lines += [
            f"| {'**' if trial.name == result.chosen else ''}{quoted(trial.name)}"
            f"{'**' if trial.name == result.chosen else ''} | {_cell(trial.gain)} | {_cell(trial.task)} | "
            f"{trial.gain.count if trial.gain else 0:,} | {trial.rounds} |"
            for trial in ranked(result)
        ]
        lines.append("")
    lines += [f"- {quoted(line)}" for line in (_asked(result), *result.notes)]
    return "\n".join(lines) + "\n"


def ranked(result: RepairResult) -> list[Trial]:
    """The trials, those that went farthest first and of those the best one."""
    return sorted(result.trials, key=lambda one: (-one.rounds, -(one.gain.value if one.gain else -1e9), one.name))


def _lines(result: RepairResult) -> Iterator[str]:
    yield result.sentence
    yield ""
    yield f"base   {printable(result.base)}"
    yield f"tuned  {printable(result.tuned)}"
    yield _asked(result)
    yield from result.notes
    if result.trials:
        yield ""
        yield "candidates on the facts of the choice, in points against the fine-tuned model (95 % interval)"
        yield f"  {'':<20}{'knowledge':>26}{'to be kept':>26}{'facts':>8}{'rounds':>8}"
        for trial in ranked(result):
            mark = "   chosen" if trial.name == result.chosen else "   control" if trial.control else ""
            count = trial.gain.count if trial.gain else 0
            yield f"  {trial.name:<20}{_cell(trial.gain):>26}{_cell(trial.task):>26}{count:>8,}{trial.rounds:>8}{mark}"
    if result.written:
        yield ""
        values = "" if result.values is None else f" ({result.values:,} values differ from the fine-tuned model's)"
        yield f"written: {printable(result.written)}{values}"


def _asked(result: RepairResult) -> str:
    minutes, seconds = divmod(round(result.seconds), 60)
    return (
        f"{result.facts_choosing:,} facts that the base knows to choose and {result.facts_confirming:,} others to "
        f"confirm ({result.facts_source}), {minutes} min {seconds} s; to be kept: {result.kept_task}"
    )


def _cell(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return f"{found.value:+.1f}" + ("" if found.low is None else f" ({found.low:+.1f} to {found.high:+.1f})")


def _interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return " (too few for an interval)"
    return f" (95 % interval {found.low:.1f} to {found.high:.1f})"
