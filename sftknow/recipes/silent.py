"""The page of what the paper leaves open: every key whose docstring says so, with what is chosen and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sftknow.options import Options, explanations, recipe_keys, silences
from sftknow.recipes.load import load_recipe
from sftknow.recipes.schema import Recipe
from sftknow.records import to_json

EXAMPLE = "paper-llama-3-8b"
"""The recipe with everything that the paper did."""

_HEAD = f"""# Where the paper is silent

What *Analyzing the Effects of Supervised Fine-Tuning on Model Knowledge from Token and Parameter Levels*
(arXiv 2509.16596) does not say and a run has to decide: what is chosen here, why, and which key of a recipe changes it.
Values are the defaults; where the recipe `{EXAMPLE}` has another, it stands beside.

A key is changed in the recipe file, or for one run: `sftknow run {EXAMPLE} --set divergence.tuned_prompt=statement`.

This page is what `sftknow paper` prints, made of the text behind the commands' `--help`; edit that text, not the page.
"""


def silent_page() -> str:
    """The page, as Markdown."""
    parts = [_HEAD]
    example = load_recipe(EXAMPLE)
    for name, section in recipe_keys(Recipe).items():
        if section is not None and (entries := list(_entries((name,), section, section(), getattr(example, name)))):
            parts.append(f"## {name}\n\n" + "\n\n".join(entries) + "\n")
    return "\n".join(parts)


def _entries(keys: tuple[str, ...], kind: type[Options], default: Options, example: Options) -> Iterator[str]:
    """One entry for each key of a section whose docstring has something to say, sections within included."""
    texts, open_questions, hints = explanations(kind), silences(kind), get_type_hints(kind)
    for name, section in recipe_keys(kind).items():
        here = (*keys, name)
        if section is not None:
            yield from _entries(here, section, getattr(default, name), getattr(example, name))
        elif name in open_questions:
            value, other = (_yaml(getattr(each, name)) for each in (default, example))
            beside = "" if other == value else f", in `{EXAMPLE}` `{other}`"
            choices = get_args(hints[name]) if get_origin(hints[name]) is Literal else ()
            among = f" (of {', '.join(f'`{_yaml(c)}`' for c in choices)})" if choices else ""
            said = f"{texts[name]}\n\n{open_questions[name]}".replace("``", "`")
            yield f"**`{'.'.join(here)}`**: `{value}`{beside}{among}. {said}"


def _yaml(value: Any) -> str:
    """A value as one writes it into a recipe, long lists shortened."""
    plain = to_json(value)
    if isinstance(plain, (list, Mapping)):
        text = json.dumps(plain, ensure_ascii=False).replace('"', "")
        return text if len(text) < 60 else f"{text[:50].rpartition(',')[0]}, …]"
    return plain if isinstance(plain, str) else f"{plain:g}" if isinstance(plain, float) else json.dumps(plain)
