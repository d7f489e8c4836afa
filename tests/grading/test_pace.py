"""Progress follows the tokens that go through the model: early, evenly, and in all exactly."""

import numpy as np
import pytest

from sftknow.grading.pace import Pace
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.records import SamplingPolicy
from tests.grading.test_transformers_sampler import TOKENIZER, build, requests


def simulated(pace, rng, *, at_once, count, steps, samples, hit, part, prompt=12):
    """Work off made-up statements; gives (work so far, what was told so far) after each pass, and all work."""
    waiting, alive = count, []
    """Of each statement: its age, and how many samples each of its rows has."""
    work, told, seen = 0, 0.0, []
    while waiting or alive:
        if alive:
            rows = sum(len(sizes) for _, sizes in alive)
            pace.rows(rows)
            work += rows
            told += pace.done()
            seen.append((work, told))
        joined = min(waiting, at_once - len(alive))
        if joined:
            waiting -= joined
            pace.prompts(prompt * joined)
            work += prompt * joined
            pace.joined(np.full(joined, prompt))
            alive += [(0, [samples])] * joined
        after = []
        for age, sizes in alive:
            parted = []
            for size in sizes:
                away = rng.binomial(size, part) if size > 1 else 0
                parted += [each for each in (size - away, away) if each and rng.random() > hit]
            if parted and age + 1 < steps:
                after.append((age + 1, parted))
        alive = after
        ages, sizes = [age for age, _ in alive], [sizes for _, sizes in alive]
        pace.stepped(
            np.repeat(ages, [len(each) for each in sizes]).astype(np.int64),
            np.repeat(ages, [sum(each) for each in sizes]).astype(np.int64),
        )
        told += pace.done()
        seen.append((work, told))
    return seen, work


@pytest.mark.parametrize(("hit", "part"), [(0.0, 0.2), (0.04, 0.25), (0.15, 0.1), (0.02, 0.5)])
@pytest.mark.parametrize("at_once", [8, 120])
def test_the_estimate_is_right_within_a_third_from_early_on(hit, part, at_once):
    count, steps, samples = 120, 32, 10
    pace = Pace(np.full(count, 12), steps, samples)
    seen, work = simulated(
        pace, np.random.default_rng(0), at_once=at_once, count=count, steps=steps, samples=samples, hit=hit, part=part
    )
    assert seen[-1][1] + pace.rest() == count
    # From the third step on, which shows how samples leave and rows part.
    for done, told in seen[6:]:
        assert told / count == pytest.approx(done / work, rel=1 / 3)


def test_it_moves_with_every_pass_and_adds_up():
    sampler = TransformersSampler(build("llama"), TOKENIZER, max_rows=60)
    told, asked = [], requests()
    sampler.sample(asked, SamplingPolicy(), on_done=told.append)
    assert sum(told) == len(asked)
    assert len(told) > 30
    assert max(told) < len(asked) / 3
