"""Progress follows the tokens that go through the model: early, evenly, and in all exactly."""

import numpy as np
import pytest

from sftknow.grading.pace import Pace
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.records import SamplingPolicy
from tests.grading.test_transformers_sampler import TOKENIZER, build, requests


def simulated(pace, rng, *, at_once, count, steps, samples, hit, part, join, most, prompt=12, idle=0):
    """Work off made-up statements; gives (work so far, what was told so far) after each pass, and all work.

    At most ``join`` of them begin in one step, as those of one length. Work is what takes time: tokens, and ``idle`` of
    them more for every pass.
    """
    waiting, alive = count, []
    """Of each statement: its age, and how many samples each of its rows has."""
    work, told, seen = 0, 0.0, []
    while waiting or alive:
        if alive:
            rows = sum(len(sizes) for _, sizes in alive)
            for start in range(0, rows, most):
                run = min(most, rows - start)
                pace.rows(run)
                work += run + idle
                told += pace.done()
                seen.append((work, told))
        joined = min(waiting, join, (at_once * samples - sum(sum(sizes) for _, sizes in alive)) // samples)
        if joined:
            waiting -= joined
            pace.prompts(prompt * joined)
            work += prompt * joined + idle
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
@pytest.mark.parametrize(
    ("count", "at_once", "join", "most"),
    [
        (120, 8, 120, 512), (120, 120, 120, 9999), (21, 21, 21, 512), (84, 84, 12, 512), (700, 25, 9, 512),
        (120, 120, 120, 100), (700, 25, 9, 70),
    ],
)  # fmt: skip
@pytest.mark.parametrize("idle", [0, 30])
def test_the_estimate_is_right_within_a_third_from_early_on(hit, part, count, at_once, join, most, idle):
    steps, samples = 32, 10
    pace = Pace(np.full(count, 12), steps, samples, at_once=at_once * samples, most=most, idle=idle)
    made = {"at_once": at_once, "count": count, "steps": steps, "samples": samples, "hit": hit, "part": part}
    seen, work = simulated(pace, np.random.default_rng(0), **made, join=join, most=most, idle=idle)
    assert seen[-1][1] + pace.rest() == count
    # From the third step on, which shows how samples leave and rows part; of few statements only more steps do.
    begun = 6 if join > 20 else 20
    for done, told in seen[begun:]:
        assert told / count == pytest.approx(done / work, rel=1 / 3)


def test_it_moves_with_every_pass_and_adds_up():
    sampler = TransformersSampler(build("llama"), TOKENIZER, max_rows=60)
    told, asked = [], requests()
    sampler.sample(asked, SamplingPolicy(), on_done=told.append)
    assert sum(told) == len(asked)
    assert len(told) > 30
    assert max(told) < len(asked) / 3
