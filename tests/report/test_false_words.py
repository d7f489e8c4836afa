"""How often a word is wrong: made-up experiments, some without any effect, through the real claims and words.

Under each truth the words that would be false are named. Of a thousand reports each may come at most fifty times; and
of large effects most must be seen, since a report that never says anything makes no mistake either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from scipy.stats import binom

from sftknow.report.advice import advice
from sftknow.report.claims import judge
from sftknow.report.contents import Report
from sftknow.report.findings import findings
from sftknow.report.summary import plain_words
from tests.report.simulated import Truth, simulated_report

EFFECTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "small": {
        "training": 0.03, "data": -0.03, "unknown": -0.03, "restoring": 0.03, "after_more": 0.01,
        "nats": (0.33, 0.3, 0.33),
    },
    "large": {
        "training": 0.3, "data": -0.2, "unknown": -0.3, "restoring": 0.15, "after_more": 0.2,
        "ranking": 0.15,
        "nats": (0.6, 0.2, 0.6), "forgetting": 0.08,
    },
    "opposite": {
        "training": -0.15, "data": 0.2, "unknown": 0.3, "restoring": -0.15,
        "nats": (0.2, 0.4, 0.2), "forgetting": -0.08,
    },
    "blind": {"restoring": 0.1, "ranking": -0.12},
}  # fmt: skip


def words(report: Report) -> Iterator[str]:
    """Every word of judgement that the report gives, as (place: word)."""
    for judged in judge(report):
        yield f"{judged.id}: {judged.verdict.word}"
    found = findings(report)
    best = found["best_training"]
    places = {
        "best over base": [best["test_over_base"]],
        "best over base, out of domain": [best["testood_over_base"]],
        "weakest behind best": [best["worst"]["behind"]],
        "more data": found["more_data"],
        "restoration": [found["restoration"][s] for s in ("test", "testood") if s in found["restoration"]],
        "chosen levels": found["restoration"]["chosen_levels"],
    }
    source = found["source_effect"]
    places["bucket 0"] = [source["lead"]] if source["bucket_0_is_best"] else [source["mean"], source["bucket_4"]]
    for place, parts in places.items():
        sure = [p for p in parts if p["sure"]]
        yield from {f"{place}: {'more' if p['value'] > 0 else 'less'}" for p in sure}
    told = len(best["not_told_apart"]) < best["trainings"] - 1
    yield f"best told apart: {'yes' if told else 'no'}"
    said = [*plain_words(found), *advice(report, found)]
    yield from {f"said: {phrase}" for phrase in PHRASES if any(phrase in s for s in said)}


HARM = ("harms on", "restoring harms", "; harms", "surely harms", "rather not")
PHRASES = (
    "fewer of the facts", "more of the facts", "did harm", "data helped", "improves", "surely worse",
    "is surely better", "the ranking gains more", "gains more than the ranking", *HARM,
)  # fmt: skip
"""Parts of sentences that state an effect."""


def counted(truth: Truth, reports: int) -> Counter[str]:
    return Counter(word for seed in range(reports) for word in set(words(simulated_report(truth, seed))))


VERDICTS = (
    "phenomenon-1", "phenomenon-2", "token-finding-1", "token-finding-2", "parameter-finding-1", "parameter-finding-2",
    "ranking",
)  # fmt: skip
PLACES = (
    "best over base", "best over base, out of domain", "weakest behind best", "more data", "restoration",
    "chosen levels", "bucket 0",
)  # fmt: skip
HARM_SAID = {f"said: {phrase}" for phrase in HARM}
FALSE = {
    "nothing": {f"{v}: holds" for v in VERDICTS}
    | {f"{p}: {way}" for p in PLACES for way in ("more", "less")}
    | {f"said: {p}" for p in PHRASES}
    | {"best told apart: yes"},
    # There is no forgetting, so small a valley counts as none, and the ranking adds nothing.
    "small": {f"{v}: does not hold" for v in VERDICTS if not v.startswith(("token", "ranking"))}
    | {"best over base: less", "more data: more", "restoration: less", "chosen levels: less", "bucket 0: more"}
    | {"token-finding-2: holds", "said: more of the facts", "said: data helped", "ranking: holds"}
    | {"said: the ranking gains more", "said: gains more than the ranking"}
    | HARM_SAID,
    "large": {f"{v}: does not hold" for v in VERDICTS}
    | {"best over base: less", "more data: more", "restoration: less", "chosen levels: less", "bucket 0: more"}
    | {"said: more of the facts", "said: data helped", "said: gains more than the ranking"}
    | HARM_SAID,
    "opposite": {f"{v}: holds" for v in VERDICTS}
    | {"more data: less", "restoration: more", "chosen levels: more", "bucket 0: less"}
    | {"said: fewer of the facts", "said: did harm", "said: improves"},
    "blind": {"ranking: holds", "said: the ranking gains more"},
}
"""The words that are false under each truth."""
SEEN = {
    ("large", 3): {"phenomenon-1: holds", "phenomenon-2: holds", "token-finding-2: holds", "parameter-finding-1: holds"}
    | {"more data: less", "restoration: more", "chosen levels: more", "said: improves", "best told apart: yes"},
    ("large", 5): {f"{v}: holds" for v in VERDICTS}
    | {"best over base: more", "weakest behind best: more", "bucket 0: less", "said: did harm"},
    ("opposite", 3): {"phenomenon-1: does not hold", "phenomenon-2: does not hold", "token-finding-1: does not hold"}
    | {"more data: more", "said: data helped"},
    ("blind", 3): {"ranking: does not hold", "said: gains more than the ranking"},
}
"""What most reports must see of large effects, by truth and seeds."""


@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("truth", list(EFFECTS))
def test_false_words_are_rare(truth: str, seeds: int) -> None:
    """Two hundred reports in all, so that a bound of 5 % leaves room for what so few can show."""
    reports = 40 if truth == "nothing" else 7
    _check(truth, seeds, reports, most=int(binom.ppf(0.999, reports, 0.05)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("truth", list(EFFECTS))
def test_false_words_are_rare_in_a_thousand_reports(truth: str, seeds: int) -> None:
    _check(truth, seeds, 1000, most=50)


def _check(truth: str, seeds: int, reports: int, most: int) -> None:
    found = counted(Truth(seeds=seeds, **EFFECTS[truth]), reports)
    assert {word: found[word] for word in FALSE[truth] if found[word] > most} == {}
    missed = {word: found[word] for word in SEEN.get((truth, seeds), set()) if found[word] < 0.6 * reports}
    assert missed == {}, "large effects are seen"


def test_one_draw_says_nothing_about_a_kind_of_training() -> None:
    """Whatever the effect, of trainings with a single draw only the mean over trainings and single models are told."""
    found = counted(Truth(seeds=1, **EFFECTS["large"]), 5)
    told = {word for word in found if not word.endswith("cannot be told")}
    about_models = ("restoration", "chosen levels", "parameter-finding-1", "said: improves", "said: is surely better")
    about_models += ("ranking", "said: the ranking")
    assert {word for word in told if not word.startswith(about_models)} == {"best told apart: no"}
