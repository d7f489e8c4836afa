"""The batch of one call of the transformers sampler: what waits, what is being continued, what has been counted.

All rows hold the same number of tokens, prompt and continuation together; a statement joins when the batch has reached
its own length. So nothing is padded or masked, whatever the model's position scheme, and the batch fills up while rows
leave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sftknow.answers import Matcher, MatchRule
from sftknow.grading.completions import CompletionFilter
from sftknow.grading.decoding import Decoder
from sftknow.grading.drawing import draw_tokens
from sftknow.grading.prefixes import shared_prefix
from sftknow.grading.sampling import SampleRequest, uniforms
from sftknow.grading.slot_cache import SlotCache
from sftknow.records import SampleTally, SamplingPolicy

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Forward = Callable[[Ints, SlotCache], torch.Tensor]
"""Runs token ids [rows, tokens] through the model on the cache's window; gives the last token's logits."""


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
        limit: most samples alive at once; at least one request is always taken.
        keep_texts: whether continuations go on after a hit and are kept.
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
        limit: int,
        keep_texts: bool,
    ) -> None:
        self.requests, self.encoded, self.policy = requests, encoded, policy
        self.forward, self.decoder = forward, decoder
        matchers = {answers: Matcher(answers, rule) for answers in {request.answers for request in requests}}
        self.matchers = [matchers[request.answers] for request in requests]
        self.filter = CompletionFilter(decoder, rule)
        self.endings = self.filter.endings([request.answers for request in requests])
        self.ends = np.array(sorted(end_ids), dtype=np.int64)
        self.waiting: dict[int, deque[int]] = {}
        # In the order of their tokens, so that neighbours share as long a beginning as can be.
        for index in sorted(range(len(encoded)), key=lambda i: encoded[i]):
            self.waiting.setdefault(len(encoded[index]), deque()).append(index)
        self.limit = min(max(limit, policy.samples), len(requests) * policy.samples)
        self.cache = SlotCache(slots=self.limit, columns=max(self.waiting) + policy.max_new_tokens)
        self.length = 0
        """Tokens in every row, the last one not yet in the cache."""
        self.prompt_length = np.array([len(ids) for ids in encoded], dtype=np.int64)
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
        return [
            SampleTally(
                fact_id=request.fact_id,
                template=request.template,
                tries=self.policy.samples,
                hits=int(self.hits[i]),
                texts=None if self.texts is None else tuple(self.texts[i]),
            )
            for i, request in enumerate(self.requests)
        ]

    def step(self) -> int:
        """Draw one token for every living sample; return how many requests that finished."""
        if not len(self.rows):
            ahead = [length for length in self.waiting if length >= self.length]
            self.length = min(ahead or self.waiting)
        old_rows, old_samples = len(self.rows), len(self.samples)
        drawn = []
        if old_rows:
            self.cache.look(0, old_rows, self.length - 1)
            drawn_last = self._steps(self.rows.request) - 1
            logits = self.forward(np.take_along_axis(self.rows.tokens, drawn_last[:, None], axis=1), self.cache)
            drawn.append(self._draw(logits, 0, slice(0, old_samples)))
        joined = self._admit()
        if joined:
            logits = self._run_prompts(joined, old_rows)
            drawn.append(self._draw(logits, old_rows, slice(old_samples, None)))
        self.cache.look(0, len(self.rows), self.length)
        finished = self._branch(np.concatenate(drawn))
        self.length += 1
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

    def _run_prompts(self, joined: Sequence[int], first: int) -> torch.Tensor:
        """Logits after the statements in the rows from the first on; a beginning they share is run once for all."""
        ids = np.array([self.encoded[i] for i in joined], dtype=np.int64)
        split = shared_prefix(ids)
        if split.length:
            self.cache.look(first, first + len(split.first_rows), 0)
            self.forward(ids[split.first_rows, : split.length], self.cache)
            self.cache.look(first, first + len(joined), split.length)
            self.cache.copy(first + split.group, first + np.arange(len(joined)))
        else:
            self.cache.look(first, first + len(joined), 0)
        return self.forward(ids[:, split.length :], self.cache)

    def _draw(self, logits: torch.Tensor, first_row: int, which: slice) -> Ints:
        """Tokens of these samples, whose rows' logits are given from ``first_row`` on."""
        steps = self._steps(self.samples.request[which])
        chosen = np.take_along_axis(self.samples.uniforms[which], steps[:, None], axis=1)[:, 0]
        tokens = draw_tokens(
            logits,
            torch.from_numpy(self.samples.row[which] - first_row).to(logits.device),
            torch.from_numpy(chosen).to(logits.device),
            temperature=self.policy.temperature,
        )
        return tokens.cpu().numpy()

    def _branch(self, drawn: Ints) -> int:
        """Split rows where their samples differ, let rows leave; return how many requests finished.

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
        if self.texts is None:
            leaves = leaves | hit
        else:
            self._store_texts(tokens, lengths, branch_of, leaves)
        np.subtract.at(self.alive, owners[leaves], counts[leaves])
        finished = int((self.alive[np.unique(owners[leaves])] == 0).sum())
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
