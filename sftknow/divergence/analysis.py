"""How far fine-tuning moved the first predicted token (paper, 4.1): the room's public functions.

Which facts (paper, 4.1, "Data Selection"): test facts of bucket 4, which the base completes whatever the statement;
per topic the statement template with the base's highest hit rate; and of those the facts whose answer starts near
the beginning of the base's completion, so that the first token says something about the answer.

What a base says does not depend on the fine-tuned model, so `measure_base` runs once and its `BaseView` serves every
fine-tuned model of a grid, shown the one prompt and the other. The paper shows the base a statement ("the pre-trained
model is used to complement the prior text") and does not say what the fine-tuned model is shown. The headline shows it
the question that it was trained on: only so can the divergence be large after 60 facts and fall with more, as the paper
reports; shown the same text as the base, a model that learned nothing has a divergence of 0.

    selection = select_prompts(MasteryData(folder).bucket("test", 4), statements)
    base_view = measure_base(*load_for_logits(base), selection)
    for checkpoint in checkpoints:
        write_divergence(out, measure_divergence(base_view, *load_for_logits(checkpoint)))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from sftknow.artifacts.divergence import DivergenceResult, ExampleDivergence, read_divergence, write_divergence
from sftknow.divergence import kl as divergence
from sftknow.divergence.base import BaseView, as_shown, measure_base
from sftknow.divergence.forward import first_token_logits, first_token_of, load_for_logits
from sftknow.divergence.options import Shown
from sftknow.divergence.selection import Selection, select_prompts, skipped_fact
from sftknow.divergence.summary import INFINITE, is_finite, summarise
from sftknow.errors import ModelError
from sftknow.progress import progress

__all__ = [
    "BaseView",
    "DivergenceResult",
    "ExampleDivergence",
    "Selection",
    "load_for_logits",
    "measure_base",
    "measure_divergence",
    "read_divergence",
    "select_prompts",
    "write_divergence",
]


def check_same_tokens(base_view: BaseView, tokenizer: Any) -> None:
    """Raise ModelError unless the tokenizer means the same by every id and cuts the prompts alike.

    Tokens that only one of the two has (a padding token that was added, say) are no hindrance: ids that both use must
    stand for the same text.
    """
    vocabulary = tokenizer.get_vocab()
    moved = None
    if vocabulary != base_view.vocabulary:
        fewer, more = sorted((base_view.vocabulary, vocabulary), key=len)
        moved = next((token for token, number in fewer.items() if more.get(token) != number), None)
    if moved is not None:
        raise ModelError(
            f"the two models have different tokenizers: {moved!r} has id {base_view.vocabulary.get(moved)} in the base "
            f"and {vocabulary.get(moved)} in the fine-tuned model; compare models that share a tokenizer"
        )
    for text, ids in zip(base_view.prompts, base_view.prompt_ids, strict=True):
        plain = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not plain or ids[-len(plain) :] != plain:
            raise ModelError(
                f"the two models have different tokenizers: they cut {text!r} into different tokens; "
                "compare models that share a tokenizer"
            )


def measure_divergence(
    base_view: BaseView,
    model: Any,
    tokenizer: Any,
    *,
    k: int = 10,
    prompt: Shown = "question",
    bootstrap: int = 2000,
    seed: int = 0,
) -> DivergenceResult:
    """Compare a fine-tuned model's first token with the base's on the facts of the base view (paper, 4.1).

    Two passes over the facts, one for each prompt, and none of the base; the fine-tuned model's logits are held for one
    batch at a time. The result is that of ``prompt``, with the other one ``beside`` it. An example with an infinite
    divergence (a token that one model rules out with a logit of -inf and the other does not) is left out of every mean
    and counted in ``skipped``; it stays among the examples.

    Args:
        base_view: from `measure_base`.
        model: the fine-tuned model, a transformers causal language model; left as it was found.
        tokenizer: its tokenizer.
        k: ids compared, the paper's ten.
        prompt: what the fine-tuned model is shown. ``question``: it is compared as it is used, and part of the
            divergence is that of the two prompts. What the base was shown: nothing but the weights differs.
        bootstrap: resamples behind the interval of the mean.
        seed: of the bootstrap.

    Raises:
        ModelError: the tokenizers differ, the model gives NaN, or not one divergence is finite.
        ValueError: ``prompt`` is none.
    """
    if prompt not in get_args(Shown):
        raise ValueError(f"prompt={prompt!r}")
    check_same_tokens(base_view, tokenizer)
    other: Shown = "statement" if prompt == "question" else "question"
    result, beside = (
        _measure(base_view, model, tokenizer, k=k, prompt=shown, bootstrap=bootstrap, seed=seed)
        for shown in (prompt, other)
    )
    return replace(
        result,
        summary=replace(result.summary, beside=beside.summary),
        examples=[
            replace(one, beside_kl=two.kl, beside_top=two.tuned_top)
            for one, two in zip(result.examples, beside.examples, strict=True)
        ],
    )


def _measure(
    base_view: BaseView, model: Any, tokenizer: Any, *, k: int, prompt: Shown, bootstrap: int, seed: int
) -> DivergenceResult:
    """The divergence with the fine-tuned model shown one of the prompts."""
    ids: Sequence[Sequence[int]] = base_view.prompt_ids
    answers: Sequence[int] = base_view.answer_tokens
    if prompt != base_view.shown:
        shown = [as_shown(tokenizer, choice, prompt) for choice in base_view.choices]
        ids = [tokens for _, tokens in shown]
        answers = [
            first_token_of(tokenizer, text, choice.fact.object)
            for (text, _), choice in zip(shown, base_view.choices, strict=True)
        ]

    def text_of(number: int) -> str:
        # A padded output head has rows that stand for no token.
        known = tokenizer.convert_ids_to_tokens(number) is not None
        return str(tokenizer.decode([number])) if known else f"<unused {number}>"

    examples: dict[int, ExampleDivergence] = {}
    with progress(len(base_view.choices), "first tokens", unit="facts") as bar:
        for indices, logits in first_token_logits(model, ids, base_view.batch_size):
            _refuse_nan(base_view, indices, logits)
            examples.update(_compare(base_view, indices, logits, answers, k=k, text_of=text_of))
            bar.update(len(indices))
    ordered = [examples[i] for i in range(len(base_view.choices))]
    skipped = [*base_view.skipped]
    for choice, example in zip(base_view.choices, ordered, strict=True):
        if not is_finite(example):
            skipped.append(skipped_fact(choice.fact, choice.bucket, INFINITE))
    summary = summarise(
        ordered,
        headline=base_view.headline,
        skipped=skipped,
        k=k,
        window=base_view.window,
        base_prompt=base_view.shown,
        tuned_prompt=prompt,
        bootstrap=bootstrap,
        seed=seed,
    )
    return DivergenceResult(summary=summary, examples=ordered, skipped=skipped)


def _refuse_nan(base_view: BaseView, indices: Sequence[int], logits_bv: Tensor) -> None:
    broken = logits_bv.isnan().any(-1).nonzero()
    if len(broken):
        fact = base_view.choices[indices[int(broken[0])]].fact.id
        raise ModelError(
            f"the fine-tuned model predicts NaN for {fact}: its training diverged; lower the learning rate"
        )


def _compare(
    base_view: BaseView,
    indices: Sequence[int],
    logits_bv: Tensor,
    tuned_answers: Sequence[int],
    *,
    k: int,
    text_of: Callable[[int], str],
) -> dict[int, ExampleDivergence]:
    tuned, base = divergence.common_rows(logits_bv, base_view.logits[list(indices)])
    top = divergence.top_k_divergence(tuned, base, k)
    tuned_log, base_log = divergence.log_softmax(tuned), divergence.log_softmax(base)
    base_answer_b = torch.tensor([base_view.answer_tokens[i] for i in indices])
    tuned_answer_b = torch.tensor([tuned_answers[i] for i in indices])
    dummies_bk = torch.tensor(base_view.dummy_tokens, dtype=torch.long).expand(len(indices), -1)
    columns: dict[str, list[Any]] = {
        "kl": top.kl_n.tolist(),
        "full": divergence.relative_entropy(tuned_log, base_log).tolist(),
        "full_reverse": divergence.relative_entropy(base_log, tuned_log).tolist(),
        "base_mass": divergence.mass(base_log, top.ids_nk).tolist(),
        "tuned_mass": divergence.mass(tuned_log, top.ids_nk).tolist(),
        "base_answer_rank": divergence.rank(base_log, base_answer_b).tolist(),
        "tuned_answer_rank": divergence.rank(tuned_log, tuned_answer_b).tolist(),
        "base_answer_probability": divergence.mass(base_log, base_answer_b[:, None]).tolist(),
        "tuned_answer_probability": divergence.mass(tuned_log, tuned_answer_b[:, None]).tolist(),
        "base_dummy_mass": divergence.mass(base_log, dummies_bk).tolist(),
        "tuned_dummy_mass": divergence.mass(tuned_log, dummies_bk).tolist(),
        "base_top_shares": [tuple(row) for row in top.base_nk.tolist()],
        "tuned_top_shares": [tuple(row) for row in top.tuned_nk.tolist()],
        "top_tokens": [tuple(map(text_of, row)) for row in top.ids_nk.tolist()],
        "answer_token": [text_of(base_view.answer_tokens[i]) for i in indices],
    }
    base_first = divergence.top_ids(base, 1)[:, 0].tolist()
    tuned_first = top.ids_nk[:, 0].tolist()
    compared = {}
    for row, i in enumerate(indices):
        choice = base_view.choices[i]
        compared[i] = ExampleDivergence(
            fact_id=choice.fact.id,
            topic=choice.fact.topic,
            bucket=choice.bucket,
            subject=choice.fact.subject,
            object=choice.fact.object,
            template=choice.template,
            prompt=base_view.prompts[i],
            completion=base_view.completions[i],
            top_changed=base_first[row] != tuned_first[row],
            base_top=text_of(base_first[row]),
            tuned_top=text_of(tuned_first[row]),
            **{name: values[row] for name, values in columns.items()},
        )
    return compared
