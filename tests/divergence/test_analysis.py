"""A fine-tuned model against its base, on random models with real tensors."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from sftknow.divergence import analysis
from sftknow.divergence.analysis import BaseView, measure_base
from sftknow.divergence.base import NOT_NEAR
from sftknow.divergence.selection import select_prompts
from sftknow.divergence.summary import INFINITE
from sftknow.errors import ModelError
from sftknow.prompts import prompt_ids
from tests.divergence.models import RANDOM, STATEMENTS, fact, row
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
measure_divergence = partial(analysis.measure_divergence, prompt="statement")
"""Both models shown the same text: then nothing but the weights differs."""
SUBJECTS = ("Onia", "Tulandia-on-Sea", "Z", "Wye", "Great Belmora", "Xu", "Halmstad 4")


def view_of(model: Any, *, batch_size: int = 64, subjects: tuple[str, ...] = SUBJECTS) -> BaseView:
    """A base view of all subjects: the whole alphabet is accepted, and a window that everything starts in."""
    letters = tuple(chr(i) for i in range(33, 127))
    selection = select_prompts([row(fact(s, answer="Arden", aliases=letters)) for s in subjects], STATEMENTS)
    return measure_base(model, TOKENIZER, selection, window=12, batch_size=batch_size)


def tuned(model_name: str, seed: int = 0, *, by: float = 0.05) -> Any:
    """The random model of that seed, moved a little."""
    model = RANDOM[model_name](len(TOKENIZER), seed)
    torch.manual_seed(99)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module", params=sorted(RANDOM))
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_model_diverges_by_exactly_nothing(architecture: str, batch_size: int, dtype: torch.dtype) -> None:
    base = RANDOM[architecture](len(TOKENIZER)).to(dtype)
    again = RANDOM[architecture](len(TOKENIZER)).to(dtype)
    result = measure_divergence(view_of(base, batch_size=batch_size), again, TOKENIZER)
    summary = result.summary
    assert (summary.mean, summary.low, summary.high, summary.full_mean, summary.full_reverse_mean) == (0.0,) * 5
    assert summary.top_changed == 0.0
    assert summary.base_mass == summary.tuned_mass
    assert summary.count == len(result.examples) > 3


def test_numbers_are_those_of_the_plain_way(architecture: str) -> None:
    """Both models on each prompt alone, full logits, SciPy for the rest."""
    base, moved = RANDOM[architecture](len(TOKENIZER)), tuned(architecture)
    view = view_of(base)
    result = measure_divergence(view, moved, TOKENIZER, bootstrap=200)
    expected: dict[str, list[float]] = {name: [] for name in ("kl", "full", "full_reverse", "base_mass", "tuned_mass")}
    changed = []
    for prompt in view.prompts:
        ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
        with torch.no_grad():
            b, t = (m(ids).logits[0, -1].double().numpy() for m in (base, moved))
        top = np.argsort(-t, kind="stable")[:10]
        expected["kl"].append(rel_entr(softmax(t[top]), softmax(b[top])).sum())
        expected["full"].append(rel_entr(softmax(t), softmax(b)).sum())
        expected["full_reverse"].append(rel_entr(softmax(b), softmax(t)).sum())
        expected["base_mass"].append(softmax(b)[top].sum())
        expected["tuned_mass"].append(softmax(t)[top].sum())
        changed.append(b.argmax() != t.argmax())
    for name, values in expected.items():
        # Matrices of another shape are multiplied in another order: float32 rounding, on divergences of up to 2 nats.
        np.testing.assert_allclose([getattr(e, name) for e in result.examples], values, rtol=2e-6, atol=1e-6)
    summary = result.summary
    assert summary.mean == pytest.approx(np.mean(expected["kl"]), rel=2e-6, abs=1e-6)
    assert summary.mean > 0.01, "the models should differ"
    assert summary.low < summary.mean < summary.high
    assert summary.full_mean == pytest.approx(np.mean(expected["full"]), abs=1e-6)
    assert summary.full_reverse_mean == pytest.approx(np.mean(expected["full_reverse"]), abs=1e-6)
    assert summary.base_mass == pytest.approx(np.mean(expected["base_mass"]), abs=1e-6)
    assert summary.tuned_mass == pytest.approx(np.mean(expected["tuned_mass"]), abs=1e-6)
    assert summary.top_changed == pytest.approx(np.mean(changed))
    assert [e.top_changed for e in result.examples] == changed


def test_batch_size_does_not_matter(architecture: str) -> None:
    base, moved = RANDOM[architecture](len(TOKENIZER)), tuned(architecture)
    one, *others = [
        [
            (e.kl, e.full, e.full_reverse)
            for e in measure_divergence(view_of(base, batch_size=n), moved, TOKENIZER).examples
        ]
        for n in (1, 2, 5, 64)
    ]
    for other in others:
        # Float32 sums in another order differ by their relative rounding, and these divergences reach 2 nats.
        np.testing.assert_allclose(other, one, rtol=2e-6, atol=1e-6)


def test_padding_side_of_the_tokenizer_does_not_matter() -> None:
    base, moved = RANDOM["gpt2"](len(TOKENIZER)), tuned("gpt2")
    left, right = tiny_tokenizer(), tiny_tokenizer()
    left.padding_side, right.padding_side = "left", "right"
    view = view_of(base)
    assert measure_divergence(view, moved, left) == measure_divergence(view, moved, right)


def test_one_view_serves_many_models_and_the_result_repeats() -> None:
    view = view_of(RANDOM["llama"](len(TOKENIZER)))
    before = view.logits.clone()
    near, far = (measure_divergence(view, tuned("llama", by=by), TOKENIZER) for by in (0.02, 0.2))
    assert 0 < near.summary.mean < far.summary.mean
    assert torch.equal(view.logits, before)
    assert measure_divergence(view, tuned("llama", by=0.02), TOKENIZER) == near
    other_seed = measure_divergence(view, tuned("llama", by=0.02), TOKENIZER, seed=1)
    assert other_seed.examples == near.examples
    assert (other_seed.summary.low, other_seed.summary.high) != (near.summary.low, near.summary.high)


def test_examples_say_what_moved() -> None:
    base, moved = RANDOM["llama"](len(TOKENIZER)), tuned("llama", by=0.1)
    view = view_of(base)
    example = measure_divergence(view, moved, TOKENIZER, k=4).examples[1]
    with torch.no_grad():
        p, q = (m(torch.tensor([view.prompt_ids[1]])).logits[0, -1].double().softmax(-1) for m in (moved, base))
    assert (example.fact_id, example.subject, example.prompt) == (
        "P36/test/Tulandia-on-Sea",
        SUBJECTS[1],
        view.prompts[1],
    )
    assert example.tuned_top == TOKENIZER.decode([int(p.argmax())]) == example.top_tokens[0]
    assert example.base_top == TOKENIZER.decode([int(q.argmax())])
    assert len(example.top_tokens) == len(example.base_top_shares) == len(example.tuned_top_shares) == 4
    assert sum(example.base_top_shares) == pytest.approx(1.0) == sum(example.tuned_top_shares)
    token = view.answer_tokens[1]
    assert example.answer_token == TOKENIZER.decode([token])
    assert example.tuned_answer_probability == pytest.approx(float(p[token]), abs=1e-6)
    assert example.base_answer_probability == pytest.approx(float(q[token]), abs=1e-6)
    assert example.tuned_answer_rank == 1 + int((p > p[token]).sum())
    assert example.base_answer_rank == 1 + int((q > q[token]).sum())


def test_dummy_words_are_found_among_the_tokens() -> None:
    view = view_of(RANDOM["llama"](len(TOKENIZER)))
    ids = [
        i
        for token, i in TOKENIZER.get_vocab().items()
        if token in ("a", "A", "Ġa", "ĠA", "the", "Ġthe", "The", "an", "Ġan")
    ]
    assert len(ids) >= 3
    moved = tuned("llama")
    for at, example in enumerate(measure_divergence(view, moved, TOKENIZER).examples):
        assert example.base_dummy_mass == pytest.approx(float(view.logits[at].softmax(-1)[ids].sum()), abs=1e-6)


def test_differently_padded_heads_compare_the_common_rows(architecture: str) -> None:
    base, moved = RANDOM[architecture](len(TOKENIZER)), tuned(architecture)
    plain = measure_divergence(view_of(base), moved, TOKENIZER).summary
    moved.resize_token_embeddings(pad_to_multiple_of=100)
    with torch.no_grad():
        moved.lm_head.weight[len(TOKENIZER) :] = 30.0
    assert moved.lm_head.weight.shape[0] == 400
    padded = measure_divergence(view_of(base), moved, TOKENIZER).summary
    assert padded.mean == pytest.approx(plain.mean, abs=1e-6)
    assert padded.full_mean == pytest.approx(plain.full_mean, abs=1e-6)


def test_rows_that_stand_for_no_token_have_a_name() -> None:
    base, moved = RANDOM["llama"](400), tuned("llama")
    moved.resize_token_embeddings(400)
    with torch.no_grad():
        moved.lm_head.weight[390:] = 0.0
    result = measure_divergence(view_of(base), moved, TOKENIZER, k=400)
    assert "<unused 399>" in result.examples[0].top_tokens


def test_another_tokenizer_is_refused() -> None:
    model = RANDOM["llama"](len(TOKENIZER))
    view = view_of(model)
    other = tiny_tokenizer(["quite another corpus with words of its own " * 20])
    assert other.get_vocab() != TOKENIZER.get_vocab()
    with pytest.raises(ModelError, match=r"different tokenizers: .* has id"):
        measure_divergence(view, model, other)


def test_a_tokenizer_that_cuts_differently_is_refused() -> None:
    from tokenizers import pre_tokenizers

    model = RANDOM["llama"](len(TOKENIZER))
    view = view_of(model)
    other = tiny_tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert other.get_vocab() == TOKENIZER.get_vocab()
    with pytest.raises(ModelError, match=r"different tokenizers: they cut 'The capital of Onia is'"):
        measure_divergence(view, model, other)


def test_an_added_padding_token_is_no_other_tokenizer() -> None:
    view = view_of(RANDOM["llama"](len(TOKENIZER)))
    more = tiny_tokenizer()
    more.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    moved = tuned("llama")
    plain = measure_divergence(view, moved, TOKENIZER)
    moved.resize_token_embeddings(len(more))
    assert measure_divergence(view, moved, more).summary.mean == pytest.approx(plain.summary.mean, abs=1e-6)


def test_a_broken_model_is_named() -> None:
    view = view_of(RANDOM["llama"](len(TOKENIZER)))
    broken = tuned("llama")
    with torch.no_grad():
        broken.lm_head.weight[7] = torch.nan
    with pytest.raises(ModelError, match=r"predicts NaN for P36/test/.*learning rate"):
        measure_divergence(view, broken, TOKENIZER)


class RulesOut(torch.nn.Module):
    """A model that gives one token no chance after prompts of one length."""

    def __init__(self, model: Any, token: int, length: int | None) -> None:
        super().__init__()
        self.model, self.token, self.length = model, token, length

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool = False) -> Any:
        positions = (attention_mask.cumsum(-1) - 1).clamp_min(0)
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=use_cache
        )
        rows = (
            torch.ones(len(input_ids), dtype=torch.bool)
            if self.length is None
            else attention_mask.sum(-1) == self.length
        )
        out.logits = out.logits.masked_fill(
            rows[:, None, None] & (torch.arange(out.logits.shape[-1]) == self.token), -torch.inf
        )
        return out


def test_infinite_divergences_are_left_out_and_counted() -> None:
    view = view_of(RANDOM["llama"](len(TOKENIZER)))
    moved = tuned("llama")
    lengths = [len(ids) for ids in view.prompt_ids]
    alone = next(n for n in lengths if lengths.count(n) == 1)
    at = lengths.index(alone)
    plain = measure_divergence(view, moved, TOKENIZER)
    result = measure_divergence(view, RulesOut(moved, 300, alone), TOKENIZER)
    assert result.examples[at].full_reverse == np.inf
    assert result.summary.skipped == {INFINITE: 1}
    assert [s.fact_id for s in result.skipped] == [view.choices[at].fact.id]
    assert result.summary.count == len(lengths) - 1
    others = [e.kl for i, e in enumerate(plain.examples) if i != at]
    assert result.summary.mean == pytest.approx(np.mean(others), abs=1e-6)
    with pytest.raises(ModelError, match="every divergence is infinite"):
        measure_divergence(view, RulesOut(moved, 300, None), TOKENIZER)


def measured_over(rows: list[Any], base: Any, moved: Any, **options: Any) -> Any:
    buckets = sorted({r.mastery.bucket for r in rows})
    view = measure_base(base, TOKENIZER, select_prompts(rows, STATEMENTS, buckets=buckets), window=12)
    return measure_divergence(view, moved, TOKENIZER, **options)


LETTERS = tuple(chr(i) for i in range(33, 127))


def test_buckets_and_topics_stand_beside_the_headline() -> None:
    base, moved = RANDOM["llama"](len(TOKENIZER)), tuned("llama")
    buckets, topics = (4, 4, 4, 4, 2, 2, 0), ("P36", "P17", "P36", "P17", "P36", "P17", "P36")
    rows = [row(fact(s, topic=t, aliases=LETTERS), bucket=b) for s, t, b in zip(SUBJECTS, topics, buckets, strict=True)]
    result = measured_over(rows, base, moved)
    alone = measured_over(rows[:4], base, moved)
    headline = [e for e in result.examples if e.bucket == 4]
    summary = result.summary
    assert summary.bucket == 4
    assert summary.count == len(headline) == 4
    # The other buckets do not enter the headline: apart from rounding by batch it is that of bucket 4 alone.
    assert summary.mean == pytest.approx(alone.summary.mean, rel=2e-6, abs=1e-6)
    assert summary.mean == pytest.approx(np.mean([e.kl for e in headline]))
    assert list(summary.by_bucket) == ["0", "2", "4"]
    assert sum(group.count for group in summary.by_bucket.values()) == len(result.examples) == 7
    for bucket, group in summary.by_bucket.items():
        own = [e for e in result.examples if str(e.bucket) == bucket]
        assert group.mean == pytest.approx(np.mean([e.kl for e in own]))
        assert group.full_mean == pytest.approx(np.mean([e.full for e in own]))
        assert group.top_changed == pytest.approx(np.mean([e.top_changed for e in own]))
        assert group.low <= group.mean <= group.high
    assert {topic: group.count for topic, group in summary.by_topic.items()} == {"P17": 2, "P36": 2}
    assert summary.by_bucket["4"].mean == summary.mean
    assert summary.base_answer_first == pytest.approx(np.mean([e.base_answer_rank == 1 for e in headline]))
    assert summary.tuned_answer_probability == pytest.approx(np.mean([e.tuned_answer_probability for e in headline]))
    assert summary.base_dummy_mass == pytest.approx(np.mean([e.base_dummy_mass for e in headline]))


def test_a_bucket_that_the_base_cannot_complete_is_counted() -> None:
    base, moved = RANDOM["llama"](len(TOKENIZER)), tuned("llama")
    known = [row(fact(s, aliases=LETTERS)) for s in SUBJECTS[:2]]
    unknown = [row(fact(s, answer="never this"), bucket=0) for s in SUBJECTS[2:5]]
    result = measured_over([*known, *unknown], base, moved)
    assert list(result.summary.by_bucket) == ["4"]
    assert result.summary.skipped == {}, "the headline left nothing out"
    assert [(s.bucket, s.reason) for s in result.skipped] == [(0, NOT_NEAR)] * 3


def test_each_model_can_be_shown_its_own_prompt() -> None:
    base, moved = RANDOM["gpt2"](len(TOKENIZER)), tuned("gpt2")
    rows = [row(fact(s, aliases=LETTERS)) for s in SUBJECTS]
    asked = measured_over(rows, base, moved, prompt="question")
    assert (asked.summary.base_prompt, asked.summary.tuned_prompt) == ("statement", "question")
    view = measure_base(base, TOKENIZER, select_prompts(rows, STATEMENTS), window=12)
    assert analysis.measure_divergence(view, moved, TOKENIZER) == asked, (
        "the fine-tuned model is asked as it was trained"
    )
    questions = {r.fact.id: r.fact.question for r in rows}
    assert asked.examples
    for example in asked.examples:
        with torch.no_grad():
            b = base(torch.tensor([TOKENIZER(example.prompt)["input_ids"]])).logits[0, -1].double().numpy()
            t = moved(torch.tensor([prompt_ids(TOKENIZER, questions[example.fact_id])])).logits[0, -1].double().numpy()
        top = np.argsort(-t, kind="stable")[:10]
        assert example.kl == pytest.approx(rel_entr(softmax(t[top]), softmax(b[top])).sum(), rel=2e-6, abs=1e-6)
    with pytest.raises(ValueError, match="prompt='both'"):
        measured_over(rows, base, moved, prompt="both")


def test_the_other_prompt_stands_beside_the_first() -> None:
    base, moved = RANDOM["gpt2"](len(TOKENIZER)), tuned("gpt2")
    rows = [row(fact(s, aliases=LETTERS)) for s in SUBJECTS]
    asked, same = (measured_over(rows, base, moved, prompt=prompt) for prompt in ("question", "statement"))
    assert asked.summary.mean != same.summary.mean
    for one, other in ((asked, same), (same, asked)):
        assert one.summary.beside == dataclasses.replace(other.summary, beside=None)
        assert [e.beside_kl for e in one.examples] == [e.kl for e in other.examples]
        assert [e.beside_top for e in one.examples] == [e.tuned_top for e in other.examples]
    nothing_learned = measured_over(rows, base, base, prompt="question").summary
    assert nothing_learned.beside is not None
    assert nothing_learned.beside.mean == 0.0 < nothing_learned.mean


def test_logits_in_a_file_are_the_same_logits() -> None:
    base, moved = RANDOM["llama"](len(TOKENIZER)), tuned("llama")
    selection = select_prompts([row(fact(s, aliases=LETTERS)) for s in SUBJECTS], STATEMENTS)
    inside, outside = (measure_base(base, TOKENIZER, selection, window=12, in_memory=size) for size in (2**30, 0))
    assert torch.equal(inside.logits, outside.logits)
    assert measure_divergence(inside, moved, TOKENIZER) == measure_divergence(outside, moved, TOKENIZER)


def test_the_room_s_face_is_complete() -> None:
    assert all(hasattr(analysis, name) for name in analysis.__all__)
    assert list(analysis.__all__) == sorted(analysis.__all__)
