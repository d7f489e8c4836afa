"""The paper's own numbers, and how they stand beside a run's: as a pattern, or with the difference where they compare.

The numbers are in ``paper.json``, as printed (Tables 1 to 11 of arXiv 2509.16596).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from sftknow.report.layout import Entry

PATTERN = "LLaMA-3-8B"
"""The model whose numbers are the pattern for models that the paper has not: most of its tables are of this one."""

SIZES = (240, 1920)
"""Training sizes of the paper's tables."""

_NAMES = re.compile(r"(?:meta-)?llama-(?P<family>[23])-(?P<size>7|8|13|70)b(?:-hf)?")
_KNOWN = {("2", "7"), ("2", "13"), ("2", "70"), ("3", "8"), ("3", "70")}
_TUNED = re.compile(r"instruct|chat|guard|sft|dpo|-it\b", re.IGNORECASE)


@cache
def paper() -> Mapping[str, Any]:
    """The content of ``paper.json``; nobody may change it."""
    content: Mapping[str, Any] = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
    return content


def table(number: int) -> Any:
    """One of the paper's tables, 1 to 11."""
    return paper()["tables"][str(number)]


def recognise(name: str | None, config: Mapping[str, Any] | None = None) -> str | None:
    """The paper's name of a base model, such as ``LLaMA-2-7B``; None for every other.

    A Hub id decides by itself (its last part, as Meta names its base models). A folder of any other name is told by its
    configuration, and only where neither its name nor the configuration's own speaks of a fine-tuned version: these
    have the same shape.

    Args:
        name: Hub id or folder.
        config: content of the model's ``config.json``.
    """
    last = (name or "").rstrip("/").rsplit("/", 1)[-1].lower()
    match = _NAMES.fullmatch(last)
    if match:
        return f"LLaMA-{match['family']}-{match['size']}B" if (match["family"], match["size"]) in _KNOWN else None
    is_hub_id = bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name or ""))
    if config is None or is_hub_id or _TUNED.search(f"{name} {config.get('_name_or_path', '')}"):
        return None
    if config.get("model_type") != "llama":
        return None
    shape = tuple(config.get(k) for k in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"))
    rope = config.get("rope_parameters") or {}
    theta = config.get("rope_theta") or rope.get("rope_theta", 10000.0)
    kind = (config.get("rope_scaling") or {}).get("rope_type") or rope.get("rope_type", "default")
    if kind != "default":
        return None  # Llama 3.1 and later
    eos = config.get("eos_token_id")
    if shape[3] == 128256 and (theta != 500000.0 or eos not in (128001, None)):
        return None  # the instruct versions end with another token
    return {
        (4096, 32, 11008, 32000): "LLaMA-2-7B",
        (5120, 40, 13824, 32000): "LLaMA-2-13B",
        (8192, 80, 28672, 32000): "LLaMA-2-70B",
        (4096, 32, 14336, 128256): "LLaMA-3-8B",
        (8192, 80, 28672, 128256): "LLaMA-3-70B",
    }.get(shape)  # type: ignore[arg-type]


def nearest_size(size: int) -> int:
    """The paper's training size nearest to one, by ratio."""
    return min(SIZES, key=lambda other: abs(math.log(max(size, 1) / other)))


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What of the paper stands beside a run.

    Attributes:
        model: the run's base model by the paper's name; None where the paper has it not.
        unlike: settings that the paper states and the run has otherwise, such as ``sft.learning_rate 0.0003``: with one
            of them no number of the run is compared with the paper's.
    """

    model: str | None
    unlike: tuple[str, ...] = ()

    def has(self, number: int) -> bool:
        """Whether the paper's table is of the run's own model, under the settings that it states."""
        return not self._unlike(number) and self._of_own_model(number)

    def _unlike(self, number: int) -> list[str]:
        """The settings that a table depends on; those of facts by mastery do not depend on the training."""
        return [setting for setting in self.unlike if setting.startswith("grading.") or number not in (1, 8)]

    def _of_own_model(self, number: int) -> bool:
        tables: Mapping[int, tuple[str, ...]] = {1: tuple(distributions()), 2: tuple(table(2))}
        return self.model in tables.get(number, (PATTERN,))

    def shown(self, number: int) -> str:
        """The model whose numbers of a table are shown."""
        return self.model if self.model is not None and self._of_own_model(number) else PATTERN

    def entry(
        self,
        entry: Entry,
        value: float | None,
        *,
        number: int,
        same: bool = True,
        place: str = "",
        spread: float | None = None,
        digits: int = 1,
    ) -> Entry:
        """An entry with the paper's value beside it: with the difference where like is put beside like, else as the
        pattern, with the place that it is of.

        Args:
            entry: the run's own; its `value` is in the paper's unit.
            value: the paper's, None where it has none for this place.
            number: the paper's table.
            same: the place is the same in everything (size above all), so that a difference means something.
            place: what the paper's value is of, such as ``240 facts``, where that is not the line's own.
            spread: the number that the paper prints as the value's index, its spread over runs.
            digits: decimals shown.
        """
        if value is None:
            return entry
        text = f"{value:,.{digits}f}" + (f" ± {spread:,.{digits}f}" if spread is not None else "")
        extra = {**entry.extra, "paper": float(value)} | ({"paper's spread": spread} if spread is not None else {})
        if same and self.has(number) and isinstance(entry.value, (int, float)):
            away = entry.value - value
            text += f" ({'±' if round(away, digits) == 0 else '+' if away > 0 else '−'}{abs(away):,.{digits}f})"
            extra["difference from paper"] = float(away)
            return replace(entry, paper=f"paper {text}", extra=extra)
        return replace(entry, paper=f"pattern {text}{f', {place}' if place and not same else ''}", extra=extra)

    def legend(self, number: int, *, compared: bool = True) -> str:
        """What “paper” and “pattern” mean under a table.

        Args:
            number: the paper's table.
            compared: whether the paper says enough of the table's places for like to stand beside like anywhere.
        """
        note = paper()["notes"].get(str(number), "")
        said = f"“Pattern”: what Table {number} of the paper shows for {self.shown(number)}"
        if other := self._unlike(number):
            said += f", not a target: this run has {', '.join(other)}, the paper has not."
        elif not compared or not self.has(number):
            said += ", not a target."
        else:
            said = (
                f"“Paper”: Table {number} of the paper for {self.model}; in brackets this run’s value less that. "
                f"{said}, at another place than the line’s."
            )
        return f" {said}{' ' + note if note else ''}"


_STATED: Mapping[tuple[str, str], tuple[Any, ...]] = {
    ("grading", "samples"): (10,),
    ("grading", "temperature"): (0.7,),
    ("grading", "max_new_tokens"): (32,),
    ("sft", "learning_rate"): (1e-5,),
    ("sft", "batch_size"): (8,),
    ("sft", "epochs"): (1,),
    ("sft", "optimizer"): ("adamw_torch", "adamw_torch_fused"),
    ("sft", "lr_scheduler"): ("cosine",),
}
"""Keys of a recipe whose value the paper states (3.3), and the values that are its."""


def unlike(recipe: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The settings of a run's recipe that differ from what the paper states; those that it does not name do not."""
    given = {(s, k): ((recipe or {}).get(s) or {}).get(k) for s, k in _STATED}
    return tuple(f"{s}.{k} {given[s, k]}" for (s, k), known in _STATED.items() if given[s, k] not in (None, *known))


def distributions() -> dict[str, Mapping[str, list[int]]]:
    """Tables 1 and 8: facts by split and bucket for each of the paper's models."""
    return {**table(1), **table(8)}
