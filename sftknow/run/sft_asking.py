"""Ask a model what SFT data would teach it, block by block; every block is on disk when it is done."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftknow.answers import Matcher
from sftknow.artifacts.files import digest, read_json, write_json
from sftknow.artifacts.selections import Form, SelectedExample, SelectResult
from sftknow.errors import FactsError, RunError
from sftknow.facts.prompts import Statements
from sftknow.facts.sources import rank_of
from sftknow.grading.estimate import seconds_each
from sftknow.grading.shards import Shard, finished, plan_shards, sample_shards, unfinished
from sftknow.grading.transformers_sampler import TransformersSampler, load_sampler
from sftknow.models.chat import chat_text, has_template
from sftknow.models.likelihood import answer_logprobs
from sftknow.models.limits import most_positions, refuse_long
from sftknow.models.loading import load_config, load_tokenizer
from sftknow.models.options import ModelOptions
from sftknow.models.resolving import BaseModel
from sftknow.progress import progress, time_text
from sftknow.prompts import completion_ids, text_ids
from sftknow.records import Fact, SamplingPolicy
from sftknow.run.asking import RULE, Say
from sftknow.run.sft_data import SFTData
from sftknow.run.time_limit import OutOfTimeError, TimedSampler, TimeLimit
from sftknow.selecting.examples import (
    RULE as WORDS,
    Example,
    are_labels,
    asked_messages,
    asked_text,
    shot_sets,
    solved_before,
)
from sftknow.selecting.known import Said, fifths, heard, without_habits
from sftknow.selecting.options import SelectOptions
from sftknow.stats import bucket_of

_BLOCK = 64
"""Examples that are asked at once: what a kill can cost."""
_ANSWER = 16
"""Longest answer of a model without a chat template, in tokens: the line of an answer of a few words."""
_HARDLY = 0.1
"""Share of right answers below which the form of asking may be the reason."""
_TOO_LONG, _TOO_LATE = "longer than the model's context", "beyond --minutes"
_MEASURED, _WORTH_A_WORD = 10.0, 600.0
"""Seconds for which the time is measured beforehand, and from which on a way to a shorter one is named."""


class SFTAsking:
    """The asking of one selection. Every block is on disk when it is done: a second start takes what is there."""

    def __init__(
        self,
        model: BaseModel,
        given: str,
        data: SFTData,
        options: SelectOptions,
        running: ModelOptions,
        work: Path,
        say: Say,
    ) -> None:
        self.model, self.given, self.data, self.options = model, given, data, options
        self.running, self.work, self.say = running, work, say
        self.tokenizer = load_tokenizer(model.ref)
        self.positions = most_positions(load_config(model.ref))
        self.chat = has_template(self.tokenizer)
        self.left_out = dict(data.left_out)
        # The time of this way of asking: what another --samples or --limit took is no part of it.
        asked = replace(options, size=SelectOptions.size, buckets=(), minutes=None)
        self.limit = TimeLimit(work / f"time-{digest(asked.settings())[:16]}.json", options.minutes or math.inf)
        self._loaded: TransformersSampler | None = None

    @property
    def sampler(self) -> TransformersSampler:
        """The model, loaded when something is to be asked."""
        if self._loaded is None:
            self._loaded = load_sampler(self.model.ref, device=self.running.device)
        return self._loaded

    def result(self) -> SelectResult:
        """Every example graded; nothing is drawn yet."""
        facts = [example for example in self.data.examples if example.fact]
        rest = [example for example in self.data.examples if not example.fact]
        short = [example for example in rest if example.is_short(self.options.short)]
        long = [example for example in rest if not example.is_short(self.options.short)]
        parts = [f"{len(facts):,} facts"] * bool(facts) + [f"{len(short):,} short answers"] * bool(short)
        parts += [f"{len(long):,} long answers by their probability"] * bool(long)
        self.say(f"asking {self.given}: {', '.join(parts)}")
        found: dict[str, SelectedExample] = {}
        rates: dict[Form, float] = {}
        form: Form | None = None
        notes = list(self.data.notes)
        if facts:
            form = "statements"
            found |= self._facts(facts)
            if found:
                tries = sum(example.tries or 0 for example in found.values())
                rates[form] = sum(example.hits or 0 for example in found.values()) / tries
        if short:
            graded, form, rates, more = self._short(short)
            found |= graded
            notes += more
        if long:
            found |= self._long(long)
        found, more = without_habits(found)
        notes += more
        self.limit.keep()
        if not found and self.left_out.get(_TOO_LATE):
            raise FactsError(
                f"{self.options.minutes:g} min were over before a single block of {_BLOCK} examples was asked; give "
                "more --minutes, and what was asked is not asked again"
            )
        if not found:
            raise FactsError(f"no example of {self.data.name} fits into the context of {self.given}")
        return SelectResult(
            data=self.data.name,
            model=self.model.name,
            sentence="",
            examples=tuple(found[e.id] for e in self.data.examples if e.id in found),
            left_out=self.left_out,
            form=form,
            rates=rates,
            options=self.options.settings(),
            notes=tuple(notes),
        )

    def _policy(self, new_tokens: int) -> SamplingPolicy:
        return SamplingPolicy(
            samples=self.options.samples,
            temperature=self.options.temperature,
            max_new_tokens=new_tokens,
            seed=self.options.seed,
        )

    def _sampled(
        self,
        statements: Sequence[tuple[Fact, Sequence[str]]],
        new_tokens: int,
        title: str,
        *,
        texts: bool,
        templates: Sequence[int] | None = None,
    ) -> Iterator[Any]:
        """The tallies of some statements, those of a fact one after the other; of those that the time sufficed for."""
        policy = self._policy(new_tokens)
        ordered = sorted(statements, key=lambda pair: rank_of(pair[0].id, self.options.seed))
        shards = [
            shard
            for start in range(0, len(ordered), _BLOCK)
            for shard in plan_shards(
                ordered[start : start + _BLOCK],
                policy,
                self.work / title.replace(" ", "-"),
                shard_size=_BLOCK,
                keep_texts=texts,
                templates=templates,
                identity=f"{self.model.sha256}/{self.model.ref.dtype}",
            )
        ]
        left = unfinished(shards, policy, keep_texts=texts)
        if left and self.limit.left() > 0:
            self._tell_time(left, policy, title)
            try:
                sampler = TimedSampler(self.sampler, lambda: self.limit.left() < 0, _TOO_LATE)
                sample_shards(shards, sampler, policy, keep_texts=texts, left=left, title=title)
                left = []
            except OutOfTimeError:
                left = unfinished(shards, policy, keep_texts=texts)
            finally:
                self.limit.keep()
        missing = {shard.key for shard in left}
        for _, tallies in finished([shard for shard in shards if shard.key not in missing], policy, texts):
            yield from tallies

    def _tell_time(self, left: Sequence[Shard], policy: SamplingPolicy, title: str) -> None:
        """Say how long it will take, measured on a few of the statements."""
        if not getattr(self.sampler, "stops", False):
            return
        some = [shard.requests[0] for shard in left[:16]] if len(left) >= 16 else [*left[0].requests[:64]]
        each = seconds_each(self.sampler, some, policy, seconds=_MEASURED, statements=16)
        count = sum(shard.size for shard in left)
        self._say_time(count, each, f"{title} to ask, {policy.samples} times each")

    def _say_time(self, count: int, each: float, what: str) -> None:
        line, left = f"{count:,} {what}: about {time_text(count * each)} here", self.limit.left()
        if count * each > left:
            line += f", of which --minutes {self.options.minutes:g} leaves room for {max(left, 0) / (count * each):.0%}"
        elif count * each > _WORTH_A_WORD:
            line += "; --limit N or --minutes N asks a random part, and what is asked now is kept if you stop it"
        self.say(line)

    def _too_late(self, count: int) -> None:
        if count:
            self.left_out[_TOO_LATE] = self.left_out.get(_TOO_LATE, 0) + count

    def _facts(self, examples: Sequence[Example]) -> dict[str, SelectedExample]:
        """Facts by their statements; those without a hit are also asked as questions, to hear what the model says."""
        facts = {example.id: example.fact for example in examples if example.fact}
        topics, new = self.data.topics, self.options.max_new_tokens
        refuse_long(
            self.given,
            self.tokenizer,
            (text for fact in facts.values() for text in Statements(topics[fact.topic], fact.subject)),
            new_tokens=new,
            positions=self.positions,
            way_out="Give a smaller --max-new-tokens, other facts",
        )
        counts: dict[str, list[int]] = {}
        statements = [(fact, Statements(topics[fact.topic], fact.subject)) for fact in facts.values()]
        for tally in self._sampled(statements, new, "statements", texts=False, templates=self._templates(statements)):
            count = counts.setdefault(tally.fact_id, [0, 0])
            count[0] += tally.hits
            count[1] += tally.tries
        self._too_late(len(examples) - len(counts))
        examples = [example for example in examples if example.id in counts]
        unknown = [example for example in examples if counts[example.id][0] == 0]
        said = self._said(unknown, examples) if unknown else {}
        found = {}
        for example in examples:
            hits, tries = counts[example.id]
            forms = said.get(example.id, {})
            best = max(forms.values(), key=lambda one: one.count / one.tries, default=None)
            found[example.id] = self._graded(
                example,
                hits,
                tries,
                best,
                against=best is not None and best.surely and not any(one.hits for one in forms.values()),
            )
        return found

    def _templates(self, statements: Sequence[tuple[Fact, Sequence[str]]]) -> list[int]:
        """The statements that are asked of each fact, spread over those that its topic has."""
        most = max(len(texts) for _, texts in statements)
        return sorted({most * i // self.options.templates for i in range(self.options.templates)} & set(range(most)))

    def _short(
        self, examples: Sequence[Example]
    ) -> tuple[dict[str, SelectedExample], Form | None, dict[Form, float], list[str]]:
        """Short answers, in the form of asking in which the model is right more often over all of them."""
        said = self._said(examples, examples)
        both = [forms for forms in said.values() if len(forms) == 2]
        rates: dict[Form, float] = {}
        asked: tuple[Form, ...] = ("solved examples first", "plain")
        for form in asked:
            there = [forms[form] for forms in both or said.values() if form in forms]
            if there:
                rates[form] = sum(one.hits for one in there) / sum(one.tries for one in there)
        best = max(rates, key=lambda name: rates[name], default=None)  # of equal ones the first
        found = {}
        for example in examples:
            if example.id in said:
                forms = said[example.id]
                one = forms[best] if best in forms else next(iter(forms.values()))
                against = one.surely and not any(other.hits for other in forms.values())
                found[example.id] = self._graded(example, one.hits, one.tries, one, against=against)
        notes = []
        if best is not None and rates[best] < _HARDLY:
            notes.append(
                "the model is hardly ever right in any form of asking: it may not understand these prompts rather than "
                "not know the answers"
            )
        if are_labels(examples) and len(examples) > 1:
            labels = len({example.answer for example in examples})
            notes.append(f"the short answers are {labels} different ones only: guessing among them counts as knowing")
        return found, best, rates, notes

    def _said(self, examples: Sequence[Example], solved_from: Sequence[Example]) -> dict[str, dict[Form, Said]]:
        """What the model says to examples, by example and form of asking."""
        labels = are_labels(solved_from)
        ranks = [rank_of(example.id, self.options.seed) for example in solved_from]
        sets = shot_sets(solved_from, ranks, self.options.shots)
        new = self.options.max_new_tokens if self.chat else min(_ANSWER, self.options.max_new_tokens)
        forms: dict[str, list[Form]] = {}
        statements = []
        by_id = {example.id: example for example in examples}
        for example in examples:
            texts: list[tuple[Form, str]] = [("plain", self._text(example, []))]
            for shots in sets:
                solved = solved_before(example, shots, self.options.shots, labels=labels)
                if solved:
                    texts.append(("solved examples first", self._text(example, solved)))
            fitting = [(form, text) for form, text in texts if self._fits(text, new)]
            if not fitting:
                self.left_out[_TOO_LONG] = self.left_out.get(_TOO_LONG, 0) + (example.fact is None)
            else:
                forms[example.id] = [form for form, _ in fitting]
                fact = Fact(
                    id=example.id,
                    topic=example.topic,
                    subject=example.text,
                    object=example.answer,
                    aliases=example.aliases,
                    question=example.text,
                    split="train",
                )
                statements.append((fact, [text for _, text in fitting]))
        heard_texts: dict[str, dict[Form, list[str]]] = {}
        found: dict[str, dict[Form, Said]] = {}
        if not statements:
            return found
        for tally in self._sampled(statements, new, "answers", texts=True):
            form = forms[tally.fact_id][tally.template]
            heard_texts.setdefault(tally.fact_id, {}).setdefault(form, []).extend(tally.texts or ())
        if not any(example.fact for example in examples):
            self._too_late(len(statements) - len(heard_texts))
        for identity, by_form in heard_texts.items():
            example = by_id[identity]
            matcher = Matcher((example.answer, *example.aliases), WORDS if example.fact is None else RULE)
            found[identity] = {form: heard(texts, matcher, one_line=not self.chat) for form, texts in by_form.items()}
        return found

    def _text(self, example: Example, solved: Sequence[Example]) -> str:
        if self.chat:
            return chat_text(self.tokenizer, asked_messages(example, solved))
        return asked_text(example, solved)

    def _fits(self, text: str, new_tokens: int) -> bool:
        if not text:
            return False
        if self.positions is None or len(text.encode()) + 8 + new_tokens <= self.positions:
            return True  # a token has at least one byte of text, save the few that a tokenizer puts around it
        return len(text_ids(self.tokenizer, text)) + new_tokens <= self.positions

    def _long(self, examples: Sequence[Example]) -> dict[str, SelectedExample]:
        """Long answers by the mean log-probability of their tokens, after the prompt as it is used before SFT."""
        pairs: list[tuple[Example, tuple[list[int], list[int]]]] = []
        for example in examples:
            if self.chat:
                prompt, completion = self._text(example, []), example.completion.strip()
            else:
                prompt, completion = example.text, example.gap + example.completion.strip()
            ids = text_ids(self.tokenizer, prompt), completion_ids(self.tokenizer, prompt, completion)[:-1]
            if not ids[0] or not ids[1] or (self.positions is not None and sum(map(len, ids)) > self.positions):
                self.left_out[_TOO_LONG] = self.left_out.get(_TOO_LONG, 0) + 1
            else:
                pairs.append((example, ids))
        pairs.sort(key=lambda pair: rank_of(pair[0].id, self.options.seed))
        means: list[float] = []
        told = False
        with progress(len(pairs), "probabilities", unit="answers") as bar:
            for start in range(0, len(pairs), _BLOCK):
                block = [ids for _, ids in pairs[start : start + _BLOCK]]
                key = digest([self.model.sha256, self.model.ref.dtype, block])
                file = self.work / "probabilities" / f"{start // _BLOCK:05d}-{key[:16]}.json"
                sums = _kept_sums(file, len(block))
                if sums is None:
                    if self.limit.left() <= 0:
                        break
                    model, began = self.sampler.model, self.limit.seconds
                    sums = answer_logprobs(model, block, on_done=bar.update)
                    write_json(file, sums)
                    self.limit.keep()
                    rest = len(pairs) - start - len(block)
                    if not told and rest:
                        self._say_time(rest, (self.limit.seconds - began) / len(block), "long answers left")
                    told = True
                else:
                    bar.update(len(block))
                means += [total / len(answer) for total, (_, answer) in zip(sums, block, strict=True)]
        self._too_late(len(pairs) - len(means))
        return {
            example.id: SelectedExample(
                id=example.id,
                prompt=example.text,
                answer=example.completion.strip(),
                topic=example.topic,
                way="probability",
                bucket=bucket,
                logprob=mean,
            )
            for (example, _), mean, bucket in zip(pairs, means, fifths(means), strict=False)
        }

    def _graded(self, example: Example, hits: int, tries: int, said: Said | None, *, against: bool) -> SelectedExample:
        return SelectedExample(
            id=example.id,
            prompt=example.text if example.fact is None else example.fact.question,
            answer=example.answer,
            topic=example.topic,
            way="samples",
            bucket=bucket_of(hits, tries),
            hits=hits,
            tries=tries,
            says="" if said is None else said.text,
            says_share=said.count / said.tries if said is not None and said.text else None,
            contradicts=against,
        )


def _kept_sums(file: Path, count: int) -> list[float] | None:
    """What an earlier start found; None where it is missing, damaged or not whole."""
    if not file.is_file():
        return None
    try:
        found = read_json(file)
    except RunError:
        return None
    whole = isinstance(found, list) and len(found) == count and all(isinstance(one, float | int) for one in found)
    return [float(one) for one in found] if whole else None
