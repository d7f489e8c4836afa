"""How far fine-tuning moved the first predicted token (paper, 4.1): the room's public functions.

Which facts (paper, 4.1, "Data Selection"): test facts of bucket 4, which the base completes whatever the statement;
per topic the statement template with the base's highest hit rate; and of those the facts whose answer starts near
the beginning of the base's completion, so that the first token says something about the answer.

What a base says does not depend on the fine-tuned model, so `measure_base` runs once and its `BaseView` serves every
fine-tuned model of a grid.

    selection = select_prompts(MasteryData(folder).bucket("test", 4), statements)
    base_view = measure_base(*load_for_logits(base), selection)
    for checkpoint in checkpoints:
        write_divergence(out, measure_divergence(base_view, *load_for_logits(checkpoint)))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sftknow.errors import ModelError
from sftknow.progress import progress
from sftknow.records import TokenDivergence
from sftknow.tokens import divergence
from sftknow.tokens.base import BaseView, measure_base
from sftknow.tokens.forward import first_token_logits, load_for_logits
from sftknow.tokens.selection import Selection, select_prompts
from sftknow.tokens.tables import DivergenceResult, ExampleDivergence, read_divergence, write_divergence

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

INFINITE = "divergence is infinite"
"""Why an example is in no mean (a key of ``skipped``)."""


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
    base_view: BaseView, model: Any, tokenizer: Any, *, k: int = 10, bootstrap: int = 2000, seed: int = 0
) -> DivergenceResult:
    """Compare a fine-tuned model's first token with the base's on the facts of the base view (paper, 4.1).

    One pass over the prompts; the fine-tuned model's logits are held for one batch at a time. An example with an
    infinite divergence (a token that one model rules out with a logit of -inf and the other does not) is left out of
    every mean and counted in ``skipped``; it stays among the examples.

    Args:
        base_view: from `measure_base`.
        model: the fine-tuned model, a transformers causal language model; left as it was found.
        tokenizer: its tokenizer.
        k: ids compared, the paper's ten.
        bootstrap: resamples behind the interval of the mean.
        seed: of the bootstrap.

    Raises:
        ModelError: the tokenizers differ, the model gives NaN, or not one divergence is finite.
    """
    check_same_tokens(base_view, tokenizer)

    def text_of(number: int) -> str:
        # A padded output head has rows that stand for no token.
        known = tokenizer.convert_ids_to_tokens(number) is not None
        return str(tokenizer.decode([number])) if known else f"<unused {number}>"

    examples: dict[int, ExampleDivergence] = {}
    with progress(len(base_view.choices), "first tokens", unit="facts") as bar:
        for indices, logits in first_token_logits(model, base_view.prompt_ids, base_view.batch_size):
            _refuse_nan(base_view, indices, logits)
            examples.update(_compare(base_view, indices, logits, k=k, text_of=text_of))
            bar.update(len(indices))
    ordered = [examples[i] for i in range(len(base_view.choices))]
    return DivergenceResult(summary=_summary(base_view, ordered, bootstrap=bootstrap, seed=seed), examples=ordered)


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
    *,
    k: int,
    text_of: Callable[[int], str],
) -> dict[int, ExampleDivergence]:
    tuned, base = divergence.common_rows(logits_bv, base_view.logits[list(indices)])
    top = divergence.top_k_divergence(tuned, base, k)
    tuned_log, base_log = divergence.log_softmax(tuned), divergence.log_softmax(base)
    answers = torch.tensor([base_view.answer_tokens[i] for i in indices])
    dummies_bk = torch.tensor(base_view.dummy_tokens, dtype=torch.long).expand(len(indices), -1)
    columns: dict[str, list[Any]] = {
        "kl": top.kl_n.tolist(),
        "full": divergence.relative_entropy(tuned_log, base_log).tolist(),
        "full_reverse": divergence.relative_entropy(base_log, tuned_log).tolist(),
        "base_mass": divergence.mass(base_log, top.ids_nk).tolist(),
        "tuned_mass": divergence.mass(tuned_log, top.ids_nk).tolist(),
        "base_answer_rank": divergence.rank(base_log, answers).tolist(),
        "tuned_answer_rank": divergence.rank(tuned_log, answers).tolist(),
        "base_answer_probability": divergence.mass(base_log, answers[:, None]).tolist(),
        "tuned_answer_probability": divergence.mass(tuned_log, answers[:, None]).tolist(),
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


def _summary(
    base_view: BaseView, examples: Sequence[ExampleDivergence], *, bootstrap: int, seed: int
) -> TokenDivergence:
    finite = [e for e in examples if np.isfinite([e.kl, e.full, e.full_reverse]).all()]
    if not finite:
        raise ModelError(
            "every divergence is infinite: one model rules out tokens (logit -inf) that the other does not"
        )
    left_out = len(examples) - len(finite)
    low, high = divergence.bootstrap_interval(np.array([e.kl for e in finite]), resamples=bootstrap, seed=seed)

    def mean(name: str) -> float:
        return float(np.mean([getattr(e, name) for e in finite], dtype=np.float64))

    return TokenDivergence(
        mean=mean("kl"),
        low=low,
        high=high,
        full_mean=mean("full"),
        full_reverse_mean=mean("full_reverse"),
        base_mass=mean("base_mass"),
        tuned_mass=mean("tuned_mass"),
        top_changed=mean("top_changed"),
        count=len(finite),
        skipped={**base_view.skipped, INFINITE: left_out} if left_out else dict(base_view.skipped),
    )
