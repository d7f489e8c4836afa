"""The batch of one call of the transformers sampler: what waits, what is being continued, what has been counted.

All rows hold the same number of tokens, prompt and continuation together; a statement joins when the batch has reached
its own length. So nothing is padded or masked, whatever the model's position scheme, and the batch fills up while rows
leave. The model and the drawing work on slices of the rows, whose size the memory decides. On a CPU a row's numbers do
not depend on its company: not on the slice, nor on which statements are there, nor on which are known already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from sftknow.answers import Matcher, MatchRule
from sftknow.grading.completions import CompletionFilter
from sftknow.grading.decoding import Decoder
from sftknow.grading.drawing import Draw, begin_draw
from sftknow.grading.pace import Pace
from sftknow.grading.prefixes import shared_prefix, split_at
from sftknow.grading.reach import Reach, Spelling
from sftknow.grading.room import Room
from sftknow.grading.sampling import SampleRequest, uniforms
from sftknow.grading.slot_cache import SlotCache, on_device
from sftknow.records import SampleTally, SamplingPolicy

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Forward = Callable[[Ints, SlotCache, int], torch.Tensor]
"""Runs token ids [rows, tokens] through the model on the cache's window; gives the last token's logits. The number says
of how many tokens of each row the model's head is asked at least."""


@dataclass
class Rows:
    """What is being continued, in the order of the cache's slots."""

    request: Ints
    tokens: Ints
    """The tokens drawn so far, shape [rows, max_new_tokens]; the last of them is not in the cache yet."""
    hit: Bools
    """Whether the text has an answer; such rows stay only where texts are kept."""

    def __len__(self) -> int:
        return len(self.request)


@dataclass
class Samples:
    """The living samples, each with the row it shares."""

    row: Ints
    request: Ints
    index: Ints
    """Place within the request."""
    uniforms: npt.NDArray[np.float64]
    """Shape [samples, max_new_tokens]."""

    def __len__(self) -> int:
        return len(self.row)


class Batch:
    """Works off requests step by step.

    Args:
        requests: statements.
        encoded: their token ids, none empty.
        policy: how to sample.
        forward: the model.
        decoder: the tokenizer's other half.
        end_ids: tokens that end a continuation.
        rule: how answers are compared.
        completions: which tokens may complete an answer.
        spelling: of the tokens.
        room: how much is worked on at once.
        keep_texts: whether continuations go on after a hit and are kept.
        known: tallies of requests that are not asked again, by their place.
        on_pass: called after every pass through the model.
    """

    def __init__(
        self,
        requests: Sequence[SampleRequest],
        encoded: Sequence[list[int]],
        policy: SamplingPolicy,
        *,
        forward: Forward,
        decoder: Decoder,
        end_ids: Collection[int],
        rule: MatchRule,
        completions: CompletionFilter,
        spelling: Spelling,
        room: Room,
        keep_texts: bool,
        known: Mapping[int, SampleTally] | None = None,
        on_pass: Callable[[], None] = lambda: None,
    ) -> None:
        self.requests, self.encoded, self.policy = requests, encoded, policy
        self.forward, self.decoder = forward, decoder
        matchers = {answers: Matcher(answers, rule) for answers in {request.answers for request in requests}}
        self.matchers = [matchers[request.answers] for request in requests]
        self.filter = completions
        self.endings = self.filter.endings([request.answers for request in requests])
        # Continuations that are kept go on to their end.
        self.reach = None if keep_texts else Reach(spelling, [request.answers for request in requests])
        self.ends = np.array(sorted(end_ids), dtype=np.int64)
        self.known = dict(known or {})
        by_length: dict[int, list[int]] = {}
        # In the order of their tokens, so that neighbours share as long a beginning as can be.
        for index in sorted(range(len(encoded)), key=lambda i: encoded[i]):
            by_length.setdefault(len(encoded[index]), []).append(index)
        # Cut where all of one length ask for it, so that a statement's passes are the same whoever joins with it.
        self.cuts = {
            length: shared_prefix(np.array([encoded[i] for i in which], dtype=np.int64)).length
            for length, which in by_length.items()
        }
        left = {length: deque(i for i in which if i not in self.known) for length, which in by_length.items()}
        self.waiting = {length: which for length, which in left.items() if which}
        self.room, self.on_pass = room, on_pass
        self.limit = min(max(room.samples, policy.samples), len(requests) * policy.samples)
        self.cache = SlotCache(slots=self.limit + room.least, columns=max(by_length) + policy.max_new_tokens)
        self.length = 0
        """Tokens in every row, the last one not yet in the cache."""
        self.prompt_length = np.array([len(ids) for ids in encoded], dtype=np.int64)
        self.pace = Pace(
            np.array([len(ids) for i, ids in enumerate(encoded) if i not in self.known], dtype=np.int64),
            policy.max_new_tokens,
            policy.samples,
            at_once=self.limit,
            most=room.rows,
            idle=room.idle,
        )
        self.hits = np.zeros(len(requests), dtype=np.int64)
        self.alive = np.full(len(requests), policy.samples, dtype=np.int64)
        self.texts = [[""] * policy.samples for _ in requests] if keep_texts else None
        none = np.zeros(0, dtype=np.int64)
        self.rows = Rows(none, np.zeros((0, policy.max_new_tokens), dtype=np.int64), np.zeros(0, dtype=bool))
        self.samples = Samples(none, none, none, np.zeros((0, policy.max_new_tokens)))

    @property
    def working(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self.waiting or len(self.rows))

    def tallies(self) -> list[SampleTally]:
        """What was counted, in the order of the requests."""
        return [self.known.get(i) or self.tally(i) for i in range(len(self.requests))]

    def tally(self, place: int) -> SampleTally:
        """What was counted of one request."""
        return SampleTally(
            fact_id=self.requests[place].fact_id,
            template=self.requests[place].template,
            tries=self.policy.samples,
            hits=int(self.hits[place]),
            texts=None if self.texts is None else tuple(self.texts[place]),
        )

    def step(self) -> list[int]:
        """Draw one token for every living sample; return which requests that finished."""
        if not len(self.rows):
            ahead = [length for length in self.waiting if length >= self.length]
            self.length = min(ahead or self.waiting)
        old_rows, old_samples = len(self.rows), len(self.samples)
        drawn: list[tuple[Ints, Draw]] = []  # waited for at the end alone, so that a GPU is never without work
        if old_rows:
            drawn_last = self._steps(self.rows.request) - 1
            newest = np.take_along_axis(self.rows.tokens, drawn_last[:, None], axis=1)
            drawn += self._run(newest, 0, self.length - 1, slice(0, old_samples), self.pace.rows)
        joined = self._admit()
        if joined:
            drawn += self._run_prompts(joined, old_rows, slice(old_samples, None))
            self.pace.joined(self.prompt_length[joined])
        self.cache.look(0, len(self.rows), self.length)
        tokens = np.empty(len(self.samples), dtype=np.int64)
        for which, draw in drawn:
            tokens[which] = draw.tokens().cpu().numpy()
        finished = self._branch(tokens)
        self.length += 1
        self.pace.stepped(self._steps(self.rows.request), self._steps(self.samples.request))
        return finished

    def _admit(self) -> list[int]:
        """Give rows and samples to requests of the present length, as many as there is room for."""
        queue = self.waiting.get(self.length, deque())
        each = self.policy.samples
        joined = [queue.popleft() for _ in range(min(len(queue), (self.limit - len(self.samples)) // each))]
        if not joined:
            return joined
        if not queue:
            del self.waiting[self.length]
        first = len(self.rows)
        self.rows = Rows(
            request=np.concatenate([self.rows.request, joined]),
            tokens=np.pad(self.rows.tokens, ((0, len(joined)), (0, 0))),
            hit=np.pad(self.rows.hit, (0, len(joined))),
        )
        streams = [uniforms(self.requests[i], self.policy) for i in joined]
        self.samples = Samples(
            row=np.concatenate([self.samples.row, np.repeat(np.arange(first, len(self.rows)), each)]),
            request=np.concatenate([self.samples.request, np.repeat(joined, each)]),
            index=np.concatenate([self.samples.index, np.tile(np.arange(each), len(joined))]),
            uniforms=np.concatenate([self.samples.uniforms, *streams]),
        )
        return joined

    def _run_prompts(self, joined: Sequence[int], first: int, which: slice) -> list[tuple[Ints, Draw]]:
        """First tokens of these samples, of the statements in the rows from the first on, as `_run` gives them.

        A beginning that statements share is run once for all.
        """
        ids = np.array([self.encoded[i] for i in joined], dtype=np.int64)
        split = split_at(ids, self.cuts[self.length])
        if split.length:
            self._run(ids[split.first_rows, : split.length], first, 0, None, self.pace.prompts)
            self.cache.look(first, first + len(joined), split.length)
            self.cache.copy(first + split.group, first + np.arange(len(joined)))
        return self._run(ids[:, split.length :], first, split.length, which, self.pace.prompts)

    def _run(
        self, ids: Ints, first: int, length: int, which: slice | None, count: Callable[[int], None]
    ) -> list[tuple[Ints, Draw]]:
        """Run tokens through the model in passes over some rows each, and draw what comes next.

        Args:
            ids: shape [rows, new tokens].
            first: the first of the rows, which follow each other.
            length: tokens that they hold already.
            which: the samples of these rows; None where nothing is to be drawn.
            count: told of the tokens of each pass.

        Returns:
            Of each pass the samples that it drew for, and their tokens.
        """
        rows, new = ids.shape
        at_once = max(self.room.least, min(self.room.rows, self.room.tokens // new))
        passes = -(-rows // at_once)
        bounds = [rows * i // passes for i in range(passes + 1)]
        least = -(-self.room.least // new)  # a matrix product does not know tokens of one row from rows
        from_sample = 0 if which is None else which.start or 0
        owner = self.samples.row[which] - first if which is not None else np.zeros(0, dtype=np.int64)
        drawn = []
        for start, stop in pairwise(bounds):
            filled = max(stop - start, least)
            part = np.pad(ids[start:stop], ((0, filled - (stop - start)), (0, 0)), mode="edge")
            self.cache.look(first + start, first + start + filled, length)
            keep = min(new, -(-self.room.least // filled))  # the head is a matrix product like the others
            logits = self.forward(part, self.cache, keep)[: stop - start]
            here = np.flatnonzero((owner >= start) & (owner < stop)) + from_sample
            if len(here):
                drawn.append((here, self._draw(logits, first + start, here)))
            count((stop - start) * new)
            self.on_pass()
        return drawn

    def _draw(self, logits: torch.Tensor, first_row: int, which: Ints) -> Draw:
        """Tokens of these samples, whose rows' logits are given from ``first_row`` on."""
        steps = self._steps(self.samples.request[which])
        return begin_draw(
            logits,
            on_device(self.samples.row[which] - first_row, logits.device),
            on_device(self.samples.uniforms[which, steps], logits.device),
            temperature=self.policy.temperature,
        )

    def _branch(self, drawn: Ints) -> list[int]:
        """Split rows where their samples differ, let rows leave; return which requests finished.

        Args:
            drawn: each sample's token.
        """
        vocabulary = int(drawn.max()) + 1
        branches, branch_of = np.unique(self.samples.row * vocabulary + drawn, return_inverse=True)
        parents, newest = np.divmod(branches, vocabulary)
        counts = np.bincount(branch_of, minlength=len(branches))
        owners = self.rows.request[parents]
        steps = self._steps(owners)
        tokens = self.rows.tokens[parents]
        before = tokens[np.arange(len(branches)), np.maximum(steps - 1, 0)]
        tokens[np.arange(len(branches)), steps] = newest
        ended = np.isin(newest, self.ends)
        leaves = ended | (steps + 1 >= self.policy.max_new_tokens)
        lengths = steps + ~ended
        known = self.rows.hit[parents]
        # An end token is no text, but it settles the text before it; so does the last step for the newest token.
        may_hit = np.where(ended, (steps > 0) & self.filter.open(before), True) & ~known
        may_hit[may_hit] = ended[may_hit] | self.filter.passes(
            newest[may_hit], before[may_hit], self.endings[owners[may_hit]]
        )
        found = self._search(np.flatnonzero(may_hit), tokens, lengths, owners, leaves)
        np.add.at(self.hits, owners[found], counts[found])
        hit = known.copy()
        hit[found] = True
        if self.reach is not None:
            leaves = leaves | hit
            stays = np.flatnonzero(~leaves)
            left = self.policy.max_new_tokens - lengths[stays]
            leaves[stays] = self.reach.hopeless(owners[stays], left, tokens[stays], lengths[stays])
        else:
            self._store_texts(tokens, lengths, branch_of, leaves)
        np.subtract.at(self.alive, owners[leaves], counts[leaves])
        left = np.unique(owners[leaves])
        finished: list[int] = left[self.alive[left] == 0].tolist()
        self._continue(Rows(owners, tokens, hit), parents, branch_of, ~leaves)
        return finished

    def _steps(self, owners: Ints) -> Ints:
        """Tokens that these requests' rows have drawn by now."""
        steps: Ints = self.length - self.prompt_length[owners]
        return steps

    def _search(self, which: Ints, tokens: Ints, lengths: Ints, owners: Ints, leaves: Bools) -> Ints:
        """Those of these branches whose text has an answer; the whole text for those that leave."""
        found: list[int] = []
        for these, text_of in (
            (which[~leaves[which]], self.decoder.settled),
            (which[leaves[which]], self.decoder.whole),
        ):
            texts = text_of([tokens[i, : lengths[i]].tolist() for i in these.tolist()])
            found += [
                i
                for i, owner, text in zip(these.tolist(), owners[these].tolist(), texts, strict=True)
                if self.matchers[owner].contains(text)
            ]
        return np.array(found, dtype=np.int64)

    def _store_texts(self, tokens: Ints, lengths: Ints, branch_of: Ints, leaves: Bools) -> None:
        assert self.texts is not None
        which = np.flatnonzero(leaves)
        texts = self.decoder.whole([tokens[i, : lengths[i]].tolist() for i in which.tolist()])
        text_of = dict(zip(which.tolist(), texts, strict=True))
        for sample in np.flatnonzero(leaves[branch_of]).tolist():
            request, index = self.samples.request[sample], self.samples.index[sample]
            self.texts[request][index] = text_of[int(branch_of[sample])]

    def _continue(self, branches: Rows, parents: Ints, branch_of: Ints, stays: Bools) -> None:
        """Make the branches that stay the rows of the batch, one slot each."""
        kept = np.flatnonzero(stays)
        slots = self.cache.reassign(parents[kept])
        order = np.empty(len(kept), dtype=np.int64)
        order[slots] = kept
        self.rows = Rows(request=branches.request[order], tokens=branches.tokens[order], hit=branches.hit[order])
        slot_of = np.full(len(stays), -1, dtype=np.int64)
        slot_of[kept] = slots
        staying = stays[branch_of]
        self.samples = Samples(
            row=slot_of[branch_of[staying]],
            request=self.samples.request[staying],
            index=self.samples.index[staying],
            uniforms=self.samples.uniforms[staying],
        )
