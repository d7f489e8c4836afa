"""Self-distillation: the model answers by itself and learns how the base would, had it seen the solution."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sftknow.errors import ModelError, OptionError
from sftknow.options import Count, Limits
from sftknow.prompts import text_ids
from sftknow.training.strategies.base import STRATEGIES, Hooks, Pass, Scene, Strategy

if TYPE_CHECKING:
    import torch

    from sftknow.training.recipe import SFTRecipe
    from sftknow.training.train import TrainingSet


@STRATEGIES.register("sdft")
@dataclass(frozen=True, kw_only=True)
class SelfDistillation(Strategy):
    """The model answers the training prompts by itself and is drawn to what the base, shown the solution, would say.

    Self-distillation fine-tuning, Shenfeld et al. 2026, arXiv 2601.19897, with the base as the teacher.
    """

    strength: Annotated[float, Limits(ge=0, le=1)] = 1.0
    """Share of this in the loss, the rest is plain fine-tuning's; 0 is plain fine-tuning."""
    max_new_tokens: Count = 16
    """Length at which an answer of the model is cut off."""

    keeps_base: ClassVar[bool] = True

    def check_recipe(self, recipe: SFTRecipe) -> None:
        if not recipe.answer_only_loss:
            raise OptionError(
                "the strategy sdft lets the model answer the prompts, and with answer_only_loss false nothing tells "
                "where they end; set it to true"
            )

    def prepare(self, data: TrainingSet, scene: Scene) -> TrainingSet:
        limit = getattr(scene.model.config, "max_position_embeddings", None)
        if limit is None or not self.strength:
            return data
        teach = Teaching(scene.tokenizer)
        longest = max(len(teach.shown(*split(e.input_ids, e.labels))) + self.max_new_tokens for e in data.examples)
        if longest > limit:
            raise ModelError(
                f"sdft: an example with its solution before it has up to {longest} tokens and the model takes {limit}; "
                "train on shorter ones, or lower its option max_new_tokens"
            )
        return data

    def start(self, scene: Scene) -> Hooks:
        return Distillation(scene, self) if self.strength else Hooks()


def split(input_ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Prompt and answer of a training sequence: what comes before the first token of the loss, and the tokens of it."""
    from sftknow.training.examples import IGNORED

    counts = [place for place, label in enumerate(labels) if label != IGNORED]
    if not counts:
        return list(input_ids), []
    return list(input_ids[: counts[0]]), [input_ids[place] for place in counts]


class Teaching:
    """How the solution stands before a prompt: the prompt with its answer, an empty line, the prompt once more."""

    def __init__(self, tokenizer: Any) -> None:
        self.ends: int = tokenizer.eos_token_id
        self._begins: int | None = tokenizer.bos_token_id
        between = text_ids(tokenizer, "\n\n")
        self._between = between[1:] if between[:1] == [self._begins] else between

    def shown(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """The token ids of all that."""
        again = prompt[1:] if list(prompt[:1]) == [self._begins] else prompt
        return [*prompt, *(token for token in answer if token != self.ends), *self._between, *again]


class Distillation(Hooks):
    """KL(model || base that was shown the solution) over the tokens of answers that the model draws, in nats a token.

    The draws follow from the seed and the batch.
    """

    def __init__(self, scene: Scene, options: SelfDistillation) -> None:
        self.plain_share = 1 - options.strength
        self._options = options
        self._seed = scene.seed
        self._teaching = Teaching(scene.tokenizer)
        self._base = scene.teacher()

    def penalty(self, here: Pass) -> torch.Tensor | None:
        import torch
        from torch.nn.functional import kl_div

        rows = [
            split([token for token, there in zip(ids, mask, strict=True) if there], labels[: sum(mask)])
            for ids, mask, labels in zip(
                *(here.inputs[name].tolist() for name in ("input_ids", "attention_mask", "labels")), strict=True
            )
        ]
        rows = [row for row in rows if row[1]]
        if not rows:
            return None
        model, prompts = here.inner, [prompt for prompt, _ in rows]
        drawn = self._answers(model, prompts)
        self._base.to(here.inputs["labels"].device)  # where the model is by now
        with torch.no_grad():
            taught = [self._teaching.shown(*row) for row in rows]
            wanted = of_answers(self._base, taught, drawn)
        said = of_answers(model, prompts, drawn)
        divergence = kl_div(wanted, said, log_target=True, reduction="sum") / len(said)
        return self._options.strength * divergence / here.passes

    def _answers(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """An answer to each prompt, drawn at temperature 1 and without dropout, its end token included."""
        import torch

        # The rows are short, and without a cache of keys and values every kind of model is asked in the same way.
        device = next(model.parameters()).device
        chance = torch.Generator(device).manual_seed(zlib.crc32(repr((self._seed, prompts)).encode()))
        drawn: list[list[int]] = [[] for _ in prompts]
        training = model.training
        model.eval()
        try:
            for _ in range(self._options.max_new_tokens):
                going = [i for i, answer in enumerate(drawn) if answer[-1:] != [self._teaching.ends]]
                if not going:
                    break
                texts = [[*prompts[i], *drawn[i]] for i in going]
                with torch.no_grad():
                    chances = _next(model, texts, device).softmax(-1)
                for i, token in zip(going, torch.multinomial(chances, 1, generator=chance)[:, 0].tolist(), strict=True):
                    drawn[i].append(token)
        finally:
            model.train(training)
        return drawn


def _next(model: Any, texts: Sequence[list[int]], device: torch.device) -> torch.Tensor:
    """The logits of each text's next token, (texts, vocabulary), in float32."""
    import torch

    from sftknow.training.examples import Example
    from sftknow.training.strategies.measures import padded

    rows = padded([Example(input_ids=text, labels=text) for text in texts], device)
    last = torch.tensor([len(text) - 1 for text in texts], device=device)
    logits: torch.Tensor = model(
        input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], use_cache=False
    ).logits
    return logits[torch.arange(len(texts), device=device), last].float()


def of_answers(model: Any, before: Sequence[list[int]], answers: Sequence[list[int]]) -> torch.Tensor:
    """Log-probabilities of what comes next at each token of answers, (tokens of all answers, vocabulary), in float32.

    Args:
        model: a transformers causal LM.
        before: token ids that stand before each answer.
        answers: their token ids.
    """
    from sftknow.training.examples import IGNORED, Example
    from sftknow.training.strategies.measures import padded

    examples = [
        Example(input_ids=[*text, *answer], labels=[IGNORED] * len(text) + answer)
        for text, answer in zip(before, answers, strict=True)
    ]
    rows = padded(examples, next(model.parameters()).device)
    where = rows.pop("labels")[:, 1:] != IGNORED
    found: torch.Tensor = model(**rows, use_cache=False).logits[:, :-1][where].float().log_softmax(-1)
    return found
