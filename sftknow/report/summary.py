"""What a run says, in plain words.

The words come from the numbers in ``results.json`` alone, so that the terminal and the page say the same. When a
difference is stated as one, `sftknow.report.words` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sftknow.artifacts.choice import FORM, rule_words
from sftknow.artifacts.levels import CONTROLS
from sftknow.report.entries import percent, plus_minus, signed
from sftknow.report.words import CHANCE, FEW, SPREAD, UNTOLD, hedge


def plain_words(results: Mapping[str, Any]) -> list[str]:
    """What a run says, in sentences for people, from the content of ``results.json`` or from its `findings`.

    Differences are in percentage points with their standard error behind ±, and hedged where they are not sure.
    """
    found = results.get("findings", results)
    makers = (
        ("base", _say_base),
        ("best_training", _say_best),
        ("format", say_format),
        ("more_data", _say_more_data),
        ("source_effect", _say_source),
        ("divergence", _say_divergence),
        ("concentration", _say_concentration),
        ("restoration", _say_restoration),
        ("controls", _say_controls),
        ("exposure", _say_exposure),
    )
    said = [sentence for name, make in makers if name in found for sentence in make(found[name])]
    return said or ["This run has no scored model yet, so there is nothing to say about what fine-tuning did."]


def _points(part: Mapping[str, Any]) -> str:
    return f"{signed(part['value'])} points ± {error_text(part)}"


def error_text(part: Mapping[str, Any]) -> str:
    """A standard error; it does not exist where a bucket has a single question."""
    return "unknown" if part["stderr"] is None else percent(part["stderr"])


def in_a_row(items: Sequence[str]) -> str:
    """Names in running text, such as ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def form_words(beside: Mapping[str, float]) -> str:
    """Exact match and how many answers end by themselves, as far as they were measured."""
    words = [f"{FORM[name]} {percent(beside[name])} %" for name in FORM if name in beside]
    return f" ({', '.join(words)})" if words else ""


def moved_words(beside: Mapping[str, Mapping[str, Any]], *, hedged: bool = True) -> str:
    """The same before and after restoring; a difference that is not sure is hedged where that is asked."""
    there = {name: beside[name] for name in FORM if name in beside}
    return "".join(
        f"; {FORM[name]} {percent(p['before'])} % → {percent(p['after'])} %{hedge(p) if p['value'] and hedged else ''}"
        for name, p in there.items()
    )


def broken_words(broken: Sequence[str]) -> str:
    """Which measures of form fell."""
    return in_a_row([FORM[name] for name in broken])


def _say_exposure(part: Mapping[str, Any]) -> list[str]:
    rho = part["rank_correlation"]
    strength = f" (rank correlation {plus_minus(rho)} over {part['facts']:,} facts)" if rho is not None else ""
    least, most = part["least"], part["most"]
    return [
        f"Measured mastery against what the model read: mean R is {least['mean_rate']:.2f} for facts stated "
        f"{least['seen']} times in pretraining and {most['mean_rate']:.2f} for {most['seen']} times{strength}."
    ]


def _say_base(part: Mapping[str, Any]) -> list[str]:
    names = {"test": "in-domain", "testood": "out-of-domain"}
    said = [
        f"{percent(part[s]['value'])} % of the {names[s]} test questions{form_words(part[s]['beside'])}"
        for s in names
        if s in part
    ]
    return [f"Before fine-tuning the base model answers {in_a_row(said)} (mean over the five buckets)."] if said else []


def _say_best(part: Mapping[str, Any]) -> list[str]:
    reach = f"{percent(part['test'])} % in-domain{form_words(part['beside'])}"
    sentence = f"Of {part['trainings']} trainings, the one on {part['title']} did best: {reach}"
    if part["trainings"] == 1:
        sentence = f"The one training, on {part['title']}, reaches {reach}"
    gain = part.get("test_over_base")
    if gain:
        sentence += f", {_points(gain)} over the base"
        sentence += hedge(gain)
    outside = part.get("testood_over_base")
    if outside:
        sentence += f"; out-of-domain {percent(part['testood'])} %, {_points(outside)}"
        sentence += hedge(outside)
    said = [f"{sentence}."]
    ahead = part.get("breaks_form")
    if ahead:
        said.append(
            f"After {ahead['title']} answers contain the object more often ({percent(ahead['test'])} %), but do not "
            f"keep the form of an answer{form_words(ahead['beside'])}."
        )
    if part["broken"]:
        said.append(f"Its answers break their form: lower than the base’s {broken_words(part['broken'])}.")
    rivals = part["not_told_apart"]
    if rivals:
        names = [r["title"] for r in rivals[:3]] + ([f"{len(rivals) - 3} more"] if len(rivals) > 3 else [])
        why = f" ({FEW})" if all(r["few_seeds"] for r in rivals) else ""
        said.append(f"It {UNTOLD} apart from {in_a_row(names)}{why}.")
    worst = part.get("worst")
    if worst and worst.get("behind", {}).get("sure"):
        lead = worst["behind"]
        said.append(
            f"The weakest, on {worst['title']}, reaches {percent(worst['test'])} %: "
            f"{percent(lead['value'])} points ± {error_text(lead)} behind the best."
        )
    return said


def format_words(part: Mapping[str, Any]) -> str:
    """Which part of the gain over the base is format; empty where examples do not help the base, or none were shown."""
    if "beyond" not in part or part["format"]["value"] < 0:
        return ""
    gain, form = part["tuned"] - part["base"], part["format"]
    shown = f"{part['examples']} solved examples and no training"
    if not form["sure"]:
        told = f"none can be told to be format ({shown} give {signed(form['value'])})"
    else:
        told = f"{signed(form['value'])} are format ({shown} give them)"
    return f"of the {signed(gain)} points over the base {told}"


def say_format(part: Mapping[str, Any]) -> list[str]:
    """What of the gain is format, and what grading before and after says of knowledge."""
    said = []
    words = format_words(part)
    if words:
        beyond = part["beyond"]
        said.append(
            f"After {part['title']}, {words}; {_points(beyond)} are left beyond that on the in-domain test"
            f"{hedge(beyond)} (Table V)."
        )
    elif "beyond" in part:
        # A base that examples confuse shows nothing of format; a negative part of a gain would mean nothing either.
        said.append(
            f"After {part['title']}, how much of the {signed(part['tuned'] - part['base'])} points over the base is "
            f"format cannot be told: {part['examples']} solved examples do not help this base "
            f"({percent(part['with_examples'])} % with them, {percent(part['base'])} % without) (Table V)."
        )
    graded = part.get("statements")
    if graded:
        kept = ""
        if graded["kept"] is not None:
            kept = f"; it keeps {percent(graded['kept'])} % of what the base knows"
            if graded["low"] is not None:
                kept += f" (95 % interval {percent(graded['low'])} to {percent(graded['high'])})"
        said.append(
            f"In statements, where the format of an answer plays no part, mean R over {graded['facts']:,} test facts "
            f"is {graded['before']:.3f} before and {graded['after']:.3f} after{kept} (Table U)."
        )
    return said


def _say_more_data(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    spans = {(p["from"], p["to"]) for p in parts}
    together = len(spans) == 1

    def named(some: Sequence[Mapping[str, Any]]) -> str:
        span = "" if together else "{from:,} → {to:,} facts: "
        return in_a_row([f"{p['trained_on']} ({span.format(**p)}{_points(p)})" for p in some])

    helped = [p for p in parts if p["sure"] and p["value"] > 0]
    harmed = [p for p in parts if p["sure"] and p["value"] < 0]
    few = [p for p in parts if p["few_seeds"]]
    spread = [p for p in parts if p["doubt"] == SPREAD]
    unclear = [p for p in parts if p["doubt"] == CHANCE]
    clauses = []
    if helped:
        clauses.append(f"more training data helped with {named(helped)}")
    if harmed:
        clauses.append(f"more training data did harm with {named(harmed)}")
    if unclear:
        clauses.append(f"whether more training data helps or harms {UNTOLD} with {named(unclear)}")
    clauses += [
        f"whether more training data helps or harms: {doubt} with {named(some)}"
        for doubt, some in ((SPREAD, spread), (FEW, few))
        if some
    ]
    low, high = min(spans)
    span = f"{low:,} to {high:,} facts" if together else "the smallest to the largest training of each source"
    return [f"From {span}, {'; '.join(clauses)}."]


def _say_source(part: Mapping[str, Any]) -> list[str]:
    start = f"At {part['size']:,} facts, training on what the base did not know (bucket 0)"
    if part["bucket_0_is_best"]:
        return [f"{start} did best of the buckets, unlike in the paper{hedge(part['lead'])}."]
    lag, known = part.get("mean"), part.get("bucket_4")
    if not lag:
        return []
    sentence = f"{start} gives {_points(lag)} against {part['best']}, the best there{hedge(lag)}"
    if known:
        sentence += f"; on the facts that the base knew best (bucket 4), {_points(known)}{hedge(known)}"
    return [f"{sentence}."]


def _say_divergence(part: Mapping[str, Any]) -> list[str]:
    said = []
    least, most, bucket = part["least"], part["most"], part["bucket"]
    if least["title"] != most["title"]:
        said.append(
            f"The first predicted token moved least after {least['title']} ({least['nats']:.2f} nats) and most after "
            f"{most['title']} ({most['nats']:.2f} nats). {part['reading']}"
        )
    related = part.get("rank_correlation")
    if related:
        low, high = related["low"], related["high"]
        both = f"divergence and accuracy on bucket {bucket}"
        numbers = f"rank correlation {plus_minus(related['rho'])} over {related['count']} trainings"
        if low is None:
            return [
                *said,
                f"D{both[1:]}: {numbers}, too few or too regular for an interval.",
            ]
        numbers += f", 95 % interval {plus_minus(low)} to {plus_minus(high)}"
        if related.get("few_seeds"):
            verdict = f"Whether {both} go together: {FEW}"
        elif high < 0:
            verdict = "Models that moved further answer fewer of the facts that the base knew best"
        elif low > 0:
            verdict = "Models that moved further answer more of the facts that the base knew best, unlike in the paper"
        else:
            verdict = f"Whether {both} go together {UNTOLD} from this run"
        said.append(f"{verdict} ({numbers}).{part['beside']}")
    return said


def _say_concentration(part: Mapping[str, Any]) -> list[str]:
    if part["concentration"] is None:
        return [f"Fine-tuning on {part['title']} changed no element of the region."]
    sentence = (
        f"In the model trained on {part['title']}, the {part['level']} of the elements that changed most carry "
        f"{percent(part['concentration'])} % of the relative change"
    )
    other = part["concentration_nonzero_base"]
    if other is not None and not math.isclose(other, part["concentration"], abs_tol=5e-4):
        sentence += f" ({percent(other)} % without elements that were zero in the base)"
    if part["changed_share"] is not None:
        sentence += f"; {percent(part['changed_share'])} % of all elements changed at all"
    unchanged = part["highest_level_unchanged"]
    if unchanged:
        sentence += f", so {percent(unchanged)} % of what the {part['highest_level']} level selects had never moved"
    return [f"{sentence}."]


def _say_restoration(part: Mapping[str, Any]) -> list[str]:
    said = []
    test = part.get("test")
    if test and part["level"] == "0%":
        said.append(
            f"On the {part['chosen_on']} split no restoration of the model trained on {part['title']} beat leaving it "
            "as it is."
        )
    elif test:
        effect = f"{percent(test['before'])} % → {percent(test['after'])} %, {_points(test)}"
        what = f"Restoring {part['level']} of the model trained on {part['title']} (chosen on {part['chosen_on']})"
        verdict = "makes no difference that this run could tell"
        if test["sure"]:
            verdict = "helps" if test["value"] > 0 else "harms"
            if part["broken"] and test["value"] > 0:
                verdict = "raises containment and breaks the form of answers"
        sentence = f"{what} {verdict} on the in-domain test: {effect}{moved_words(test['beside'])}"
        outside = part.get("testood")
        if outside:
            sentence += f"; out-of-domain {_points(outside)}{hedge(outside)}{moved_words(outside['beside'])}"
        said.append(f"{sentence}.")
    if test:
        said.append(f"Levels were chosen by {rule_words(part['chosen_by'])}.")
    top = part.get("best_on_test")
    if test and top and top["level"] != part["level"]:
        said.append(
            f"Had the level been picked on the test set itself, as the paper does, it would be {top['level']} with "
            f"{percent(top['value'])} %; that number is flattered by the picking."
        )
    return [*said, *_say_chosen_levels(part.get("chosen_levels", []))]


def _say_chosen_levels(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What restoring does to each training at the level that was chosen for it."""
    if len(parts) < 2:
        return []

    def named(some: Sequence[Mapping[str, Any]]) -> str:
        shown = sorted(some, key=lambda p: -abs(p["value"]))
        names = [f"{p['title']} ({p['level']}: {_points(p)})" for p in shown[:3]]
        return in_a_row([*names, *([f"{len(shown) - 3} more (Table O)"] if len(shown) > 3 else [])])

    helped, harmed = ([p for p in parts if p["sure"] and (p["value"] > 0) == way] for way in (True, False))
    start = f"With the level chosen for each on {parts[0]['chosen_on']},"
    left = len(parts) - len(helped) - len(harmed)
    if left == len(parts):
        return [f"{start} whether restoring helps {UNTOLD} for any of {left} restored trainings."]
    clauses = [f"{verb} {len(some)}: {named(some)}" for verb, some in (("improves", helped), ("harms", harmed)) if some]
    clauses += [f"for {left} it {UNTOLD}"] * bool(left)
    return [f"{start} of {len(parts)} restored trainings, in-domain, restoring {'; '.join(clauses)}."]


def _say_controls(part: Mapping[str, Any]) -> list[str]:
    """Whether the ranking gains more than steps of the same size back towards the base."""
    beyond = part["beyond"]
    gains = in_a_row([f"{signed(found['gain'])} {CONTROLS[kind]}" for kind, found in beyond.items()])
    mean = f" on average over {part['trainings']} trainings" if part["trainings"] > 1 else ""
    sure = [found["value"] > 0 for found in beyond.values() if found["sure"]]
    if len(sure) == len(beyond) and all(sure):
        verdict = "the ranking gains more than each"
    elif not all(sure):
        verdict = "one of them gains more than the ranking"
    else:
        verdict = f"whether it is the ranking that helps {UNTOLD}"
    return [f"Restoring by relative change adds {signed(part['ranking'])} points{mean}; {gains}: {verdict} (Table Q)."]
