"""Templates of ``hub_cards/`` into markdown: strictly, so that no card shows a blank."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sftknow.errors import HubError
from sftknow.prompts import question_prompt
from sftknow.records import BUCKETS, MetricValue, Split
from sftknow.resources import card_folder
from sftknow.stats import NORMAL_95, wilson
from sftknow.untrusted import markdown_line, markdown_text

PAPER = "2509.16596"
"""arXiv number of the paper whose method this is."""

SPLIT_WORDS: Mapping[Split, str] = {
    "train": "training facts",
    "dev": "in-domain, dev",
    "test": "in-domain, test",
    "testood": "out-of-domain, test",
}


def refuse_blanks(value: Any, repo_id: str, where: str = "card") -> None:
    """Raise HubError where a text in the context is empty, or a collection that a table is made of."""
    if isinstance(value, str) and not value.strip():
        raise HubError(f"{where} of {repo_id} is blank: the artifacts it is made from do not name it", repo_id=repo_id)
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            refuse_blanks(getattr(value, field.name), repo_id, f"{where}.{field.name}")
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            refuse_blanks(entry, repo_id, f"{where}[{key}]")
    elif isinstance(value, tuple):
        for entry in value:
            refuse_blanks(entry, repo_id, where)


VERBATIM: Mapping[str, Any] = {"verbatim": True}
"""Metadata of a context's field that goes into a card as it is."""

LINES: Mapping[str, Any] = {"lines": True}
"""Metadata of a field of several lines."""


def quoted(value: Any, *, lines: bool = False) -> Any:
    """A context with its texts quoted: what a base's card or a manifest says stays text, no HTML, link or heading."""
    if isinstance(value, str):
        return markdown_text(value) if lines else markdown_line(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if not field.metadata.get("verbatim")]
        found = {f.name: quoted(getattr(value, f.name), lines=bool(f.metadata.get("lines"))) for f in fields}
        return dataclasses.replace(value, **found)
    if isinstance(value, Mapping):
        return {quoted(key): quoted(entry) for key, entry in value.items()}
    return tuple(map(quoted, value)) if isinstance(value, tuple) else value


def render(template: str, **values: Any) -> str:
    """A template of ``hub_cards/``, rendered strictly."""
    page = _environment(card_folder()).get_template(template)
    values = {name: quoted(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}
    return page.render(paper=PAPER, split_words=SPLIT_WORDS, buckets=BUCKETS, **values)


@functools.cache
def _environment(folder: Path) -> Environment:
    # Markdown, not HTML: escaping would turn apostrophes into entities.
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = lambda share: "undefined" if math.isnan(share) else f"{100 * share:.1f} %"
    environment.filters["thousands"] = lambda count: f"{count:,}"
    environment.filters["score"] = _score
    environment.globals["shares"] = shares
    environment.filters["code"] = _code
    environment.globals["prompt_of"] = lambda question: json.dumps(question_prompt(question), ensure_ascii=False)
    return environment


def _code(text: str) -> str:
    """A text as Markdown shows it to the letter: between more backticks than stand in it."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


class Share(NamedTuple):
    """One row of the paper's Table 9 or 10, for one model."""

    name: str
    """A layer's index, or a module such as ``mlp.down_proj``."""
    selected: int
    share: float
    """Of all selected elements."""
    enrichment: float
    """`share` ÷ the part's share of the region's parameters; 1 means no preference."""


def shares(selected: Mapping[str, int], elements: Mapping[str, int]) -> list[Share]:
    """Where the selected elements sit, by the number of elements of each part of the region."""
    chosen, whole = sum(selected.values()), sum(elements.values())
    rows = []
    for name, count in elements.items():
        share = selected.get(name, 0) / chosen if chosen else 0.0
        rows.append(Share(str(name), selected.get(name, 0), share, share * whole / count if count else 0.0))
    return rows


def _score(value: MetricValue | None) -> str:
    if value is None:
        return "not scored"
    low, high = interval(value)
    return f"{100 * value.value:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def interval(value: MetricValue) -> tuple[float, float]:
    """The 95 % interval of an accuracy: Wilson's for one bucket, the normal one for a mean of buckets."""
    if "_bucket_" not in value.task:
        spread = 0.0 if math.isnan(value.stderr) else NORMAL_95 * value.stderr
        return max(0.0, value.value - spread), min(1.0, value.value + spread)
    return wilson(min(value.value, 1.0) * value.count, value.count)
