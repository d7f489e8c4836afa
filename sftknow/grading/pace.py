"""How much of a batch's work is done: tokens run through the model, of those that there will be.

A pass with few tokens takes longer for each, since the weights are read in any case: so a pass counts as some tokens
more than it has. Statements finish in waves, tokens do not. What is still to come is worked out from the statements so
far: how many samples of a statement are left after each of its steps, and how many rows these share. For steps that
none has reached yet, samples go on leaving as in the last steps, and rows go on parting.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_GROWTH = 6.0
"""Steps in which most of the samples that share a row part."""
_LAST = 4
"""Steps from which is told how samples leave later on."""
_PARTS = 64
"""Statements are counted in such parts: fractions whose sums are exact."""


class Pace:
    """Told of every step; says how many statements' worth of work is done.

    Args:
        prompts: tokens of each statement that is to be continued.
        steps: most tokens of a continuation.
        samples: of each statement.
        at_once: most samples that are alive at once.
        most: rows of a pass.
        idle: tokens that a pass costs beside its own.
    """

    def __init__(self, prompts: Ints, steps: int, samples: int, *, at_once: int, most: int, idle: float) -> None:
        self._count, self._steps = len(prompts), steps
        self._prompts_left, self._prompts_seen = int(prompts.sum()), 0
        self._waiting = len(prompts)
        self._rows, self._samples_left = np.zeros(steps), np.zeros(steps)
        """Rows and samples after each step, of all statements that have been there."""
        self._been = np.zeros(steps)
        """Statements that have been there, those without a sample left too."""
        self._since: list[tuple[int, int]] = []
        """Of those that joined together: how many, and the step of the batch in which they did."""
        self._alive, self._samples_alive = np.zeros(steps), np.zeros(steps)
        """Rows and samples there are now, by their last step."""
        self._now, self._samples, self._told = 0, samples, 0
        self._run, self._prompts_run, self._prompt_passes = 0.0, 0, 0
        self._at_once, self._most, self._idle = max(at_once, samples), most, idle

    def prompts(self, tokens: int) -> None:
        """A pass ran so many tokens of statements."""
        self._run += tokens + self._idle
        self._prompts_run += tokens
        self._prompt_passes += 1

    def joined(self, prompts: Ints) -> None:
        """Statements of so many tokens joined, whole; a beginning that they share was run once."""
        self._since.append((len(prompts), self._now))
        self._waiting -= len(prompts)
        self._prompts_left -= int(prompts.sum())
        self._prompts_seen += int(prompts.sum())

    def rows(self, count: int) -> None:
        """A pass continued so many rows by a token."""
        self._run += count + self._idle

    def stepped(self, rows: Ints, samples: Ints) -> None:
        """A step is over.

        Args:
            rows: of each row that is left, how many tokens it has drawn, at least one.
            samples: the same of each sample.
        """
        self._now += 1
        self._alive = np.bincount(rows - 1, minlength=self._steps).astype(np.float64)
        self._rows += self._alive
        self._samples_alive = np.bincount(samples - 1, minlength=self._steps).astype(np.float64)
        self._samples_left += self._samples_alive
        self._since = [(count, since) for count, since in self._since if self._now - since <= self._steps]
        for count, since in self._since:
            self._been[self._now - since - 1] += count

    def done(self) -> float:
        """Statements' worth of work that is new since the last call; all calls together give their number."""
        samples, expected = self._expected()
        # What is left after a step is run in the next one; after the last one nothing is left.
        after = np.cumsum(expected[::-1])[::-1]
        rest = self._waiting * after[0] + float((self._alive * after / np.maximum(expected, 1e-9)).sum())
        seen = self._prompts_run / self._prompts_seen if self._prompts_seen else 1.0
        rest += self._prompts_left * seen + self._idle * self._passes(samples, expected, rest)
        share = self._run / (self._run + rest) if self._run + rest else 0.0
        told = max(self._told, int(share * self._count * _PARTS))
        new, self._told = told - self._told, told
        return new / _PARTS

    def rest(self) -> float:
        """What `done` has not told yet, once all is over."""
        return self._count - self._told / _PARTS

    def _passes(self, samples: Floats, rows: Floats, left_to_run: float) -> float:
        """Passes to come, by what a statement has after each of its steps, and those of new statements.

        There is one a step until the last statement ends, and as many as are needed for all samples with so much room,
        and for all rows.
        """
        left = np.cumsum(samples[::-1])[::-1]
        sample_steps = float((self._samples_alive * left / np.maximum(samples, 1e-9)).sum())
        sample_steps += self._waiting * (self._samples + float(left[0]))
        steps = float(self._steps) if self._waiting else self._until_none(rows)
        new = self._waiting * self._prompt_passes / max(1, self._count - self._waiting)
        return float(max(steps, sample_steps / self._at_once, left_to_run / self._most) + new)

    def _until_none(self, rows: Floats) -> float:
        """Steps until less than half a row is expected of those there are."""
        stay = self._alive / np.maximum(rows, 1e-9)
        ahead = (float(stay[: self._steps - k] @ rows[k:]) for k in range(self._steps))
        return float(sum(each >= 0.5 for each in ahead))

    def _expected(self) -> tuple[Floats, Floats]:
        """Samples and rows of a statement after each of its steps."""
        known = int(np.count_nonzero(self._been))
        left, rows = np.full(self._steps, float(self._samples)), np.zeros(self._steps)
        parted = 1 / self._samples
        if known:
            left[:known] = self._samples_left[:known] / self._been[:known]
            rows[:known] = self._rows[:known] / self._been[:known]
            few = max(0, known - 1 - _LAST)
            stay = (left[known - 1] / max(left[few], 1e-9)) ** (1 / max(1, known - 1 - few))
            left[known:] = left[known - 1] * stay ** np.arange(1, self._steps - known + 1)
            parted = rows[known - 1] / max(left[known - 1], 1e-9)
        ahead = np.arange(1, self._steps - known + 1)
        rows[known:] = left[known:] * (1 - (1 - parted) * np.exp(-ahead / _GROWTH))
        left[-1] = rows[-1] = 0.0  # whatever is left ends with the last step
        return left, rows
