"""What an arena says: by hand, against planted truths, and how often a word is false."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from sftknow.artifacts.arena import Entry, arena_file, write_entries
from sftknow.report.arena import write
from sftknow.report.arena.contest import Contest, contenders, contest, over_seeds
from sftknow.report.arena.field import Field, Kind, Method
from sftknow.report.arena.line import Line, plain_line, smooth
from sftknow.report.arena.page import compose
from sftknow.report.arena.worth_of_ranking import rivalries, rivalry, same_distance, verdict
from sftknow.report.verdicts import Verdict
from tests.report.arena_entries import MANY, Planted, Truth, made_up
from tests.report.browser import Site, assert_sound, find_browser

PLAIN = Method("plain")


def judged(truth: Truth, seed: int = 0) -> Contest:
    field = Field.of(made_up(truth, seed))
    return contest(field, contenders(field), "statements")


def word(found: Contest, name: str, after: str = "nothing") -> str:
    return next(s.word for s in found.standings if s.method == Method(name, after))


def placed(run: Path, entries: list[Entry]) -> Path:
    for cell in {e.cell for e in entries}:
        write_entries(arena_file(run, cell), [e for e in entries if e.cell == cell])
    return run


def test_the_line_by_hand() -> None:
    # Learned 0, 10, 30; kept 60, 58, 50, one seed: between the last two 0.4 is lost for each that is learned.
    line = Line.through(np.array([[0.3], [0.0], [0.1]]), np.array([[0.5], [0.6], [0.58]]))
    value, more = line.beyond(np.array([0.2]), np.array([0.57]))
    assert (float(value[0]), more) == (pytest.approx(0.57 - 0.54), False)
    assert line.beyond(np.array([0.0]), np.array([0.6]))[0] == pytest.approx([0.0])
    value, more = line.beyond(np.array([0.5]), np.array([0.51]))
    assert (float(value[0]), more) == (pytest.approx(0.01), True), "compared with plain itself"


def test_a_line_that_turns_back_counts_where_it_keeps_most() -> None:
    # The second place learned more than the third and kept more: nobody would take the third.
    line = Line.through(np.array([[0.0], [0.3], [0.28]]), np.array([[0.6], [0.55], [0.5]]))
    assert line.learned[:, 0].tolist() == [0.0, 0.3]
    assert line.beyond(np.array([0.28]), np.array([0.5]))[0][0] == pytest.approx(0.5 - (0.6 - 0.05 * 28 / 30))


def test_seeds_are_compared_with_their_own_line() -> None:
    """On a straight line the mean is what the means say, and single seeds differ by what they are off the line."""
    learned, kept = np.array([[0.0, 0.0], [0.4, 0.2]]), np.array([[0.6, 0.6], [0.4, 0.44]])
    values, _ = Line.through(learned, kept).beyond(np.array([0.1, 0.2]), np.array([0.56, 0.52]))
    slope = (0.42 - 0.6) / 0.3
    expected = [0.56 - 0.5 - slope * (0.1 - 0.2), 0.52 - 0.52 - slope * (0.2 - 0.1)]
    assert values == pytest.approx(expected)
    assert values.mean() == pytest.approx(0.54 - (0.6 + slope * 0.15))


def test_a_bent_line_is_followed() -> None:
    place = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    fine = np.linspace(0, 1, 41)
    assert smooth(place, (place**2)[:, None])[:, 0] == pytest.approx(fine**2), "parabolas exactly"
    assert np.abs(smooth(place, (place**3)[:, None])[:, 0] - fine**3).max() < 0.005


def test_the_mean_over_seeds_is_students() -> None:
    values = [0.01, 0.03, 0.02, 0.05, -0.01]
    assert over_seeds(values).p == pytest.approx(ttest_1samp(values, 0).pvalue)
    assert over_seeds([0.01, 0.01], step=0.006).p > 0.05, "two seeds that agree by chance"
    assert over_seeds([0.01]).few


def test_a_planted_winner_is_found_and_the_first_of_nothing_is_not() -> None:
    methods = {"good": Planted(place=0.7, keeps=0.1), "bad": Planted(keeps=-0.08), "level": Planted(place=0.6)}
    truth = Truth(methods=methods, luck=0.004)
    found = judged(truth)
    assert found.winner is not None
    assert found.winner.method == Method("good")
    assert [word(found, name) for name in ("good", "bad", "level")] == ["keeps more", "keeps less", "cannot be told"]
    assert word(found, "plain") == "the end of the line"
    over, ahead = found.over_line, found.ahead
    assert over is not None
    assert ahead is not None
    assert found.winner.found is not None
    assert over.adjusted == pytest.approx(min(1, 3 * found.winner.found.p)), "the best of three"
    assert ahead[1].adjusted == pytest.approx(min(1, 3 * ahead[1].p)), "one of three pairs"
    assert {(p.first.title, p.second.title) for p in found.pairs if p.sure} >= {("good", "bad")}
    picked = found.picked_on_others()
    assert picked is not None
    assert picked.value == pytest.approx(found.winner.found.value, abs=0.01)


def test_more_learned_and_less_kept_is_no_judgement() -> None:
    found = judged(Truth(methods={"more": Planted(place=1.0, learns=0.1, keeps=-0.1)}))
    assert word(found, "more") == "learns more and keeps less"
    assert not found.entrants


def test_what_does_nothing_and_what_is_plain_are_said_so() -> None:
    entries = made_up(Truth(methods={"m": Planted()}), 0)
    base = next(e for e in entries if e.strategy == "base")
    for e in [e for e in entries if e.strategy == "plain" and e.after == "nothing"]:
        entries.append(replace(e, strategy="half"))
        entries.append(replace(e, after="trim", level="20%"))
        entries.append(replace(e, strategy="frozen", scores=base.scores, changed=0.0, distance=0.0))
        entries.append(replace(e, strategy="mute", scores=base.scores))
    field = Field.of(entries)
    found = contest(field, contenders(field), "statements")
    assert (word(found, "half"), word(found, "plain", "trim")) == ("is plain fine-tuning", "is plain fine-tuning")
    assert (word(found, "frozen"), word(found, "mute")) == ("does nothing", "does nothing")
    assert [s.method for s in found.entrants] == [Method("m")], "copies are not counted among the comparisons"


def ranked(keeps: float, seed: int = 0) -> tuple[Verdict, set[tuple[str, str]]]:
    methods = {f"after-{name}": Planted(keeps=keeps if name == "relative" else 0.0) for name in ("relative", "random")}
    found = rivalries(Field.of(made_up(Truth(methods=methods, buckets=(None, 2)), seed)), "statements")
    return verdict(found), {(r.rival, r.equal) for r in found}


def test_is_the_ranking_worth_anything() -> None:
    better, compared = ranked(0.08)
    assert compared == {(rival, equal) for rival in ("random", "interpolation") for equal in ("share", "distance")}
    assert better.word == "holds"
    assert ranked(-0.08)[0].word == "does not hold"
    assert "gains more" in ranked(-0.08)[0].why


def test_by_the_papers_measure_at_the_levels_chosen_on_dev() -> None:
    field = Field.of(made_up(Truth(methods={"after-relative": Planted(keeps=0.1), "after-random": Planted()}), 0))
    found = {r.rival: r for r in rivalries(field, "answers")}
    assert set(found) == {"random", "interpolation"}
    mine, theirs = (field.at(Method("plain", name), Kind(None, 240)) for name in ("relative", "random"))
    assert found["random"].found.value == pytest.approx(
        np.mean([mine[s]["answers"] - theirs[s]["answers"] for s in mine])
    )


def test_equal_distance_is_the_measured_one_or_between_two_levels() -> None:
    entries = made_up(Truth(methods={"after-relative": Planted(), "after-random": Planted()}, seeds=range(2)), 0)
    kind = Kind(None, 240)

    def of(entries: list[Entry]) -> float:
        return rivalry(Field.of(entries), "random", "distance", same_distance, "answers")[0].values[kind][0]

    level = Field.of(entries).levels
    mine, theirs = (level[Method("plain", name)][kind] for name in ("relative", "random"))
    assert of(entries) == pytest.approx(np.mean([mine[k][0]["answers"] - theirs[k][0]["answers"] for k in mine]))
    twenty = [e for e in entries if e.after == "random" and e.level == "20%"]
    others = [e for e in entries if not (e.after == "random" and e.level != "20%")]
    exact = [*others, *(replace(e, level="as 20%", distance=1.0) for e in twenty)]
    only = [e for e in exact if e.after != "relative" or e.level == "20%"]
    assert of(only) == pytest.approx(mine["20%"][0]["answers"] - theirs["20%"][0]["answers"]), "though far away"


def test_two_models_that_are_nearly_the_same_do_not_bend_the_line() -> None:
    entries = made_up(Truth(seeds=range(3)), 0)
    double = [
        replace(e, level="as 20%", distance=e.distance * 1.001, scores={**e.scores, "learned": (240, 480)})
        for e in entries
        if e.after == "interpolation" and e.level == "80%"
    ]
    one, two = (plain_line(Field.of(es), Kind(None, 240), "statements", range(3)) for es in (entries, entries + double))
    assert one is not None
    assert two is not None
    assert np.array_equal(one.learned, two.learned)


def test_plains_line_needs_the_base_and_plain() -> None:
    entries = made_up(Truth(seeds=range(2)), 0)
    field = Field.of(entries)
    assert plain_line(field, Kind(None, 240), "statements", [0, 1]) is not None
    assert plain_line(field, Kind(None, 240), "statements", [0, 7]) is None
    assert plain_line(Field.of(entries[1:]), Kind(None, 240), "statements", [0]) is None


def test_files_of_a_partial_arena(tmp_path: Path) -> None:
    methods = {"l2-sp": Planted(place=0.7, keeps=0.08), "kl": Planted(place=0.6), "after-relative": Planted()}
    entries = made_up(Truth(methods=methods), 0)
    partial = [e for e in entries if not (e.strategy == "kl" and e.seed > 2)]
    run = placed(tmp_path / "run", partial)
    write(run)
    assert {p.name for p in (run / "report").iterdir()} == {"arena.html", "arena.json", "arena.md", "arena.svg"}
    results = json.loads((run / "report/arena.json").read_text())
    assert results["answer"].startswith("l2-sp keeps most at equal learning, surely: +")
    assert [gap["what"] for gap in results["missing"]] == ["kl, all buckets mixed, 240 facts: seeds 3, 4"]
    kl = next(m for m in results["methods"]["statements"] if m["method"] == "kl")
    assert kl["kept_at_equal_learning"]["seeds"] == 3
    table = (run / "report/arena.md").read_text().strip().splitlines()[2:]
    assert len(table) == 5
    assert [line.split(" | ")[0] for line in table[2:]] == ["| `l2-sp`", "| plain, then `relative`", "| plain"]
    assert len(results["figures"]["arena-front"]["rows"]) == 6
    page = (run / "report/arena.html").read_text()
    assert results["answer"] in page
    assert "seeds 3, 4" in page
    if find_browser():
        with Site(run / "report") as site:
            assert_sound(site, "arena.html", 390, pictures=1, dark=True)


def test_one_seed_and_nothing_at_all(tmp_path: Path) -> None:
    entries = made_up(Truth(methods={"l2-sp": Planted(keeps=0.2)}, seeds=[0]), 0)
    one = compose(placed(tmp_path / "one", entries)).results
    assert "none surely keeps more" in one["answer"]
    assert "too few seeds to say" in one["front_page"]
    write(tmp_path / "none")
    none = json.loads((tmp_path / "none/report/arena.json").read_text())
    assert none["answer"].startswith("Nothing is measured yet")
    assert none["missing"] == [{"what": "the base", "where": "arena/base.json"}]


def false_words(truth: Truth, tables: int) -> Counter[str]:
    """Tables with a false word of each sort, where no method keeps more than plain's line or than another."""
    found: Counter[str] = Counter()
    for seed in range(tables):
        field = Field.of(made_up(truth, seed))
        table = contest(field, contenders(field), "statements")
        found["methods"] += any(s.word.startswith("keeps") for s in table.standings)
        found["pairs"] += any(p.sure for p in table.pairs)
        found["winner"] += table.over_line is not None and table.over_line.sure
        found["ahead"] += table.ahead is not None and table.ahead[1].sure
        word = verdict(rivalries(field, "statements"))
        found["ranking"] += word.word == "holds" or "gains more" in word.why
    return found


def test_false_words_are_rare() -> None:
    few = {name: MANY[name] for name in ("m2", "m7", "m10", "after-relative", "after-random")}
    found = false_words(Truth(methods=few, seeds=range(4)), 8)
    assert max(found.values()) <= binom.ppf(0.999, 8, 0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("luck", [0.006, 0.03])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_at_most_one_table_in_twenty_has_a_false_word(seeds: int, luck: float) -> None:
    found = false_words(Truth(methods=MANY, seeds=range(seeds), luck=luck), 200)
    assert {word: n for word, n in found.items() if n > binom.ppf(0.999, 200, 0.05)} == {}
