"""A guard for other people's trainings: how much of what the model knew is still there, asked while it trains."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sftknow.answers import Synonyms
from sftknow.checking.kept import Hits, kept_share
from sftknow.errors import FactsError, ModelError
from sftknow.facts.prompts import Statements
from sftknow.facts.sources import balanced, load_facts
from sftknow.facts.topics import load_topics
from sftknow.grading.sampling import SampleRequest
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.records import BUCKETS, SamplingPolicy
from sftknow.stats import bucket_of


class KnowledgeGuard(TrainerCallback):  # type: ignore[misc]
    """Asks the model a few facts before the training and every so many steps of it, and logs what is kept.

    ::

        guard = KnowledgeGuard(every=100)
        trainer = SFTTrainer(model, train_dataset=data, callbacks=[guard])
        guard.attach(trainer)          # so that what it finds goes to whatever `report_to` names
        trainer.train()

    Logged are ``knowledge/kept`` (share of what the model knew at the start, see `sftknow.checking.kept`), its 95 %
    interval as ``knowledge/kept_low`` and ``knowledge/kept_high``, and ``knowledge/bucket_0`` to ``_4``: the mean rate
    of the facts that were in that mastery bucket at the start. The weights that come out are the same bits as without
    a guard: it has random numbers of its own and leaves the model as it found it.

    Args:
        facts: as `load_facts` takes them.
        count: facts that are asked, balanced over the relations.
        every: steps between two askings.
        templates: statements of each fact, at least 2.
        samples: continuations of each statement.
        max_new_tokens: longest continuation in tokens.
        most_time: share of the training's time that asking may take; an asking that would exceed it is put off to a
            later step. The first asking, before the training, is not counted.
        stop_at: points of knowledge whose loss ends the training; None never does. It is ended when the interval lies
            beyond that loss as a whole, at a level corrected for the number of askings (Bonferroni), so that the chance
            of stopping a training that loses no more than that is at most 2.5 %.
        seed: of the facts and the draws.

    Attributes:
        history: one entry an asking: step, kept, low, high and the rates by bucket.

    Raises:
        FactsError: the facts cannot be used, or are too few statements.
    """

    def __init__(
        self,
        facts: str | Path = "quick",
        *,
        count: int = 240,
        every: int = 100,
        templates: int = 2,
        samples: int = 1,
        max_new_tokens: int = 16,
        most_time: float = 0.05,
        stop_at: float | None = None,
        seed: int = 0,
        topics: str | Path | None = None,
        synonyms: str | Path | None = None,
    ) -> None:
        topics = None if topics is None else Path(topics)
        synonyms = None if synonyms is None else Path(synonyms)
        if min(count, every, samples) < 1 or templates < 2:
            raise FactsError("a guard needs at least 1 fact, 2 templates, 1 sample and 1 step between two askings")
        known = load_topics(topics)
        found = load_facts(facts, topics=known, synonyms=Synonyms.load(synonyms)).facts
        chosen = balanced(found, seed)[:count]
        self._requests = []
        for fact in chosen:
            texts = Statements(known[fact.topic], fact.subject)
            order = np.random.default_rng([seed, len(texts)]).permutation(len(texts))[:templates]
            if len(order) < 2:
                raise FactsError(f"{fact.topic} has {len(texts)} statement; a guard needs 2 of each fact")
            self._requests += [
                SampleRequest(fact_id=fact.id, template=int(i), prompt=texts[int(i)], answers=fact.answers)
                for i in order
            ]
        self._templates = templates
        self._policy = SamplingPolicy(samples=samples, max_new_tokens=max_new_tokens, seed=seed)
        self.every, self.most_time, self.stop_at = every, most_time, stop_at
        self.history: list[dict[str, float]] = []
        self._trainer: Any = None
        self._before: Any = None
        self._began = self._asking = self._last = 0.0

    def attach(self, trainer: Any) -> None:
        """Log through this trainer, to everything that its ``report_to`` names."""
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Ask the model as it is before the training."""
        self._before = self._ask(given)
        self._began, self._asking = time.monotonic(), 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Ask every so many steps, and after the last one."""
        last = state.global_step >= state.max_steps
        if state.global_step % self.every and not last:
            return
        spent = time.monotonic() - self._began
        if not last and self.history and self._asking + self._last > self.most_time * spent:
            return
        began = time.monotonic()
        after = self._ask(given)
        self._last = time.monotonic() - began
        self._asking += self._last
        self._note(state, control, after)

    def _ask(self, given: dict[str, Any]) -> Any:
        """Hits of each fact's statements, shape [facts, templates]."""
        model, tokenizer = given["model"], given.get("processing_class") or given.get("tokenizer")
        model = getattr(model, "module", model)
        if hasattr(model, "get_base_model"):  # peft's: its layers lie within the model
            if getattr(model.active_peft_config, "is_prompt_learning", False):
                raise ModelError("a guard cannot ask a model with learned prompts; LoRA and its like it can")
            model = model.get_base_model()
        if any(weight.numel() == 0 for weight in model.parameters()):
            raise ModelError(
                "the model's weights are spread over processes; a guard needs them in one (no FSDP, no ZeRO-3)"
            )
        training = model.training
        try:
            tallies = TransformersSampler(model, tokenizer).sample(self._requests, self._policy)
        finally:
            model.train(training)
        return np.array([tally.hits for tally in tallies], dtype=np.int64).reshape(-1, self._templates)

    def _note(self, state: TrainerState, control: TrainerControl, after: Any) -> None:
        tries = np.full_like(after, self._policy.samples)
        hits = Hits(before=self._before, after=after, tries=tries)
        found, entry = kept_share(hits), {"step": float(state.global_step)}
        if found is not None:
            entry["kept"] = found.share
            if math.isfinite(found.low):
                entry |= {"kept_low": found.low, "kept_high": found.high}
        known = bucket_of(self._before.sum(1), tries.sum(1))
        rates = after.sum(1) / tries.sum(1)
        entry |= {
            f"bucket_{bucket}": float(rates[known == bucket].mean()) for bucket in BUCKETS if (known == bucket).any()
        }
        self.history.append(entry)
        shown = {f"knowledge/{name}": value for name, value in entry.items() if name != "step"}
        if self._trainer is not None:
            self._trainer.log(shown)
        else:
            state.log_history.append({**shown, "step": state.global_step})
        if self.stop_at is not None:
            looks = max(1, math.ceil(state.max_steps / self.every))
            strict = kept_share(hits, 1 - 0.05 / looks)
            if strict is not None and 1 - strict.high > self.stop_at / 100:
                control.should_training_stop = True
