"""The contest of a repair: how often its word is false; that it keeps to its time on a machine that gets slow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sftknow.checking.options import CheckOptions, RepairOptions
from sftknow.errors import ModelError
from sftknow.facts.topics import load_topics
from sftknow.parameters.candidates import grid
from sftknow.run import asking
from sftknow.run.checking import _result
from sftknow.run.contest import TUNED
from tests.run.simulated_contest import Clock, Draws, World, outcomes

FEW = grid(("interpolation", "lines"))
HELPS = {"interpolation 50%": (0.9, 0.0)}


def world(folder: Path, clock: Clock, minutes: float = 10.0) -> World:
    options = RepairOptions(minutes=minutes, templates=4, samples=1, block=40)
    return World(0, folder, wanted=FEW, candidates=HELPS, options=options, clock=clock, count=150, lost=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nothing helps", "half of them harm"])
def test_a_repair_that_is_none_is_rarely_called_one(kind: str, tmp_path: Path) -> None:
    """Of 200 contests at most 5 %; 2.5 % are to be expected."""
    said = outcomes(kind, 200, tmp_path)
    assert said["repaired"] <= 10, said


@pytest.mark.slow
def test_a_repair_that_is_one_is_called_one(tmp_path: Path) -> None:
    said = outcomes("half of them help", 40, tmp_path)
    assert said["repaired"] >= 30, said


@pytest.mark.slow
def test_with_time_enough_it_repairs(tmp_path: Path) -> None:
    fast = world(tmp_path, Clock(each=lambda now: 0.001))
    result = fast.repair()
    assert (result.verdict, result.chosen) == ("repaired", "interpolation 50%"), result.sentence
    assert fast.contest.untried == ()


@pytest.mark.parametrize(
    "slow_from", [300.0, *(pytest.param(moment, marks=pytest.mark.slow) for moment in (0.0, 100.0, 490.0))]
)
def test_a_machine_that_becomes_slow_does_not_overrun_the_minutes(slow_from: float, tmp_path: Path) -> None:
    """From some moment on every request takes twenty times as long; a second start says the same and asks nothing."""
    clock = Clock(each=lambda now: 0.03 if now < slow_from else 0.6)
    slowed = world(tmp_path, clock)
    result = slowed.repair()
    assert result.seconds <= 600 + 1, "one request more than the time at most"
    if slowed.contest.untried:
        assert any("before these were tried" in note for note in result.notes)
        assert result.verdict != "no help"
    done = sum(1 for _ in tmp_path.rglob("*.parquet"))
    clock.each = lambda now: 1e9  # whatever is asked from here on would be seen
    again = world(tmp_path, clock).repair()
    assert (again.verdict, again.sentence, again.trials) == (result.verdict, result.sentence, result.trials)
    assert sum(1 for _ in tmp_path.rglob("*.parquet")) == done


def test_more_minutes_go_on_from_there(tmp_path: Path) -> None:
    clock = Clock(each=lambda now: 0.15)
    first = world(tmp_path, clock, minutes=2.0)
    short = first.repair()
    assert short.seconds <= 121
    asked = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.parquet")}
    long = world(tmp_path, clock, minutes=60.0).repair()
    assert long.facts_choosing >= short.facts_choosing
    assert all(file.stat().st_mtime_ns == when for file, when in asked.items())
    assert long.verdict == "repaired", long.sentence


def test_a_time_in_which_nothing_can_be_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"0\.1 min were over before enough was asked; give more --minutes"):
        world(tmp_path, Clock(each=lambda now: 1.0), minutes=0.1).repair()


@pytest.mark.slow
def test_a_sampler_that_cannot_be_left_ends_with_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draws, "stops", False)
    clock = Clock(each=lambda now: 0.03 if now < 100 else 0.6)
    result = replace(world(tmp_path, clock)).repair()
    assert result.seconds <= 600 + 0.6 * 24 * 5, "a block of statements more"


def test_a_check_keeps_to_its_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements, questions and the lost facts asked again, on a machine that becomes slow; and a second start."""
    monkeypatch.setattr(asking, "most_positions", lambda config: None)
    monkeypatch.setattr(asking, "load_config", lambda ref: None)
    options = CheckOptions(minutes=10.0, templates=4, samples=1, block=40, precision=0.1, margin=35.0)
    results = []
    clock = Clock(each=lambda now: 0.15 if now < 400 else 1.5)
    for _ in range(2):
        checked = world(tmp_path, clock)
        with checked.time():
            sides = [checked.side("base"), checked.side(TUNED)]
            asked = asking.Asking(sides, checked.facts, load_topics(), options, tmp_path, lambda _: None)
            asked.statements(options)
            results.append(_result(asked, options, "base", "tuned", "facts", []))
        clock.each = lambda now: 1e9
    assert any("lost facts were asked again" in note for note in results[0].notes)
    assert results[0].seconds <= 600 + 1.5 * 8 * (21 * 2 + 4), "eight lost facts more than the time, at most"
    assert replace(results[0], seconds=0) == replace(results[1], seconds=0)
