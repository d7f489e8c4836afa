"""What to do with this model, in plain words: how much data, from which bucket, which level, and how sure that is.

The words come from the findings' numbers alone. Sizes are those tried; nothing is said about sizes in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

from sftknow.report.aggregate import broken_form, compare, estimate, measured, ranked
from sftknow.report.contents import BASE, Model, Report, Training
from sftknow.report.entries import percent, signed
from sftknow.report.summary import broken_words, error_text, form_words, in_a_row, moved_words
from sftknow.report.words import FEW, LEAST_DRAWS, RULE


def advice(report: Report, found: Mapping[str, Any]) -> list[str]:
    """Sentences for somebody who has to decide; empty where no fine-tuned model was scored.

    Args:
        report: the run.
        found: what `findings` gives.
    """
    # On a bucket or a mixed draw, by the split that choices are made on.
    own = (t for t in report.trainings if t.bucket is not None or t.source == "mixed")
    order = [t for t, _ in ranked(report, own, report.choosing_split, "both")]
    if not order:
        return []
    return [*_data(report, order), *_bucket(report, order), *_level(found), *_sureness(report, order)]


def _equals(report: Report, order: Sequence[Training]) -> list[Training]:
    """The best training and those that cannot be told from it on the split that choices are made on.

    They have to keep up in exact match, too, and to keep the form of answers.
    """
    best, split = order[0], report.choosing_split
    looks = comb(len(order), 2)  # the best was picked by looking

    def keeps_up(training: Training) -> bool:
        leads = [compare(best.models, training.models, split, metric=metric) for metric in ("acc", "exact_match")]
        ahead = [lead for lead in leads[1:] if lead and lead.among(looks).sure and lead.value > 0]
        if leads[0] is None or leads[0].among(looks).sure or ahead:
            return False
        return not broken_form(report, training.models, split)

    return [best, *filter(keeps_up, order[1:])]


def _data(report: Report, order: Sequence[Training]) -> list[str]:
    equal = _equals(report, order)
    least = min(equal, key=lambda g: (g.size, order.index(g)))
    split = {"dev": "dev split", "test": "test set itself, for want of a dev split"}[report.choosing_split]
    few = any(len(t.models) < LEAST_DRAWS for t in order)
    if len(order) == 1:
        said = [f"How much data: only {order[0].phrase} was tried, so no size can be preferred."]
    elif few:
        least = order[0]
        said = [f"How much data: {least.phrase} did best on the {split}; {FEW} that it is better than the others."]
    elif least is order[0]:
        said = [f"How much data: {least.phrase}. It did best on the {split}, and nothing smaller keeps up with it."]
    else:
        said = [
            f"How much data: {least.phrase} is enough. {order[0].phrase[0].upper()}{order[0].phrase[1:]} did best "
            f"on the {split}, but the smaller training cannot be told apart from it."
        ]
    scored = [(name, measured(models, "test")) for name, models in _sides(report, least)]
    shown = [f"{name} {percent(m.acc)} %{form_words(m.beside)}" for name, m in scored if m]
    if shown:
        said[0] += f" In-domain, the answer is in what they say: {'; '.join(shown)}."
    broken = broken_form(report, least.models, "test")
    if broken:
        said.append(
            "Whether to fine-tune at all: rather not. Even this training breaks the form of answers: lower than the "
            f"base’s {broken_words(broken)}."
        )
    elif BASE in report.models:
        gain = compare(least.models, [report.models[BASE]], "test")
        if gain is not None and not gain.among(len(order)).sure:
            moved = f"{signed(gain.value)} points ± {percent(gain.stderr)} from the base in-domain"
            doubt = gain.among(len(order)).doubt
            about = f"the model at hand is at {moved}; of other draws" if gain.few else f"such trainings are at {moved}"
            said.append(f"Whether to fine-tune at all: {about}: {doubt}.")
        elif gain is not None and gain.value < 0:
            said.append(
                "Whether to fine-tune at all: rather not. Even this training loses "
                f"{percent(-gain.value)} points ± {percent(gain.stderr)} against the base in-domain."
            )
    return said


def _sides(report: Report, training: Training) -> list[tuple[str, Sequence[Model]]]:
    base = [("the base", [report.models[BASE]])] if BASE in report.models else []
    return [("this training", training.models), *base]


def _bucket(report: Report, order: Sequence[Training]) -> list[str]:
    if any(len(g.models) < LEAST_DRAWS for g in order):
        return [f"From which bucket: {order[0].trained_on} did best, with {order[0].size:,} facts; {FEW} more."]
    equal = _equals(report, order)
    size = min(equal, key=lambda g: (g.size, order.index(g))).size
    here = [g for g in order if g.size == size and not g.all]
    if len({g.source for g in here}) < 2:
        return ["From which bucket: at that size one kind of data was tried, so none can be preferred."]
    good = [g for g in here if g in equal and not _surely_behind(g, here)]
    bad = [g for g in here if g not in good]
    names = in_a_row([g.trained_on for g in good])
    sentence = f"From which bucket: at {size:,} facts, {names}"
    sentence += " did best" if len(good) == 1 else " do equally well as far as this run can tell"
    if bad:
        sentence += f"; {in_a_row([g.trained_on for g in bad])} {'is' if len(bad) == 1 else 'are'} surely worse"
    return [f"{sentence}. Bucket 0 is what the base does not know, bucket 4 what it knows best."]


def _surely_behind(training: Training, others: Sequence[Training]) -> bool:
    """Whether one of the others does surely better in-domain; nothing is chosen by it, so the test set may say it."""
    looks = comb(len(others), 2)
    leads = [compare(other.models, training.models, "test") for other in others if other is not training]
    return any(lead.among(looks).sure and lead.value > 0 for lead in leads if lead)


def _level(found: Mapping[str, Any]) -> list[str]:
    start = "Which level to restore: "
    part = found.get("restoration", {})
    test = part.get("test")
    if not test:
        why = "no level was chosen yet" if part.get("chosen_levels") else "nothing was restored"
        return [f"{start}{why} in this run; `sftknow restore --choose-on dev` finds one."]
    if part["level"] == "0%":
        return [f"{start}none. On the {part['chosen_on']} split no level beat the model as it was trained."]
    form = moved_words(test["beside"], hedged=False)
    effect = f"{signed(test['value'])} points ± {error_text(test)} on the in-domain test{form}"
    sentence = (
        f"{start}{part['level']} of the model trained on {part['title']}, chosen on {part['chosen_on']} ({effect})"
    )
    if not test["sure"]:
        return [f"{sentence}; {test['doubt']}, so leaving the model as it is does no harm either."]
    if test["value"] < 0:
        return [f"{start}none. {part['level']} looked best on {part['chosen_on']}, but it surely harms ({effect})."]
    if part["broken"]:
        return [
            f"{start}none. {part['level']} contains the answer more often, but breaks the form of answers: lower "
            f"{broken_words(part['broken'])} ({effect})."
        ]
    return [f"{sentence}; that is surely better than leaving it."]


def _sureness(report: Report, order: Sequence[Training]) -> list[str]:
    seeds = [len(g.models) for g in order]
    low, high = min(seeds), max(seeds)
    draws = f"{low}" if low == high else f"{low} to {high}"
    best = estimate(order[0].models, "test")
    asked = f"{best.count:,} in-domain test questions" if best else "the test questions"
    said = f"How sure: {draws} training {'draw' if high == 1 else 'draws'} of each kind, {asked}."
    if low < 2:
        said += " With a single draw another one may turn the order around: run two more seeds before relying on it."
    elif low < 5:
        said += " The paper takes five draws; with fewer, the spread between draws is itself only roughly known."
    return [f"{said} {RULE}"]
