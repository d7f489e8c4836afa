"""Licences: carried over from what something was made from, or asked for; never guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sftknow.errors import HubError
from sftknow.hub.cards import Licence

_HEAD = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a licence asks of those who pass a derived model on."""

    name_prefix: str | None
    """The model's name must begin with it."""
    notice: str
    """Text of the NOTICE file that must lie beside the weights."""


def _meta(product: str, agreement: str, *, built: str | None = None, prefix: str | None = None, c: str = "©") -> Terms:
    lines = [f"{product} is licensed under the {agreement}, Copyright {c} Meta Platforms, Inc. All Rights Reserved."]
    return Terms(name_prefix=prefix, notice="\n\n".join([*([built] if built else []), *lines]) + "\n")


TERMS: Mapping[str, Terms] = {
    "llama2": _meta("Llama 2", "LLAMA 2 Community License", c="(c)"),
    "llama3": _meta(
        "Meta Llama 3", "Meta Llama 3 Community License", built="Built with Meta Llama 3", prefix="Llama-3"
    ),
    "llama3.1": _meta("Llama 3.1", "Llama 3.1 Community License", built="Built with Llama", prefix="Llama"),
    "llama3.2": _meta("Llama 3.2", "Llama 3.2 Community License", built="Built with Llama", prefix="Llama"),
    "llama3.3": _meta("Llama 3.3", "Llama 3.3 Community License", built="Built with Llama", prefix="Llama"),
}
"""Naming and notice rules by the Hub's licence identifier, from section 1.b of each community licence."""


def licence_from(metadata: Mapping[str, Any]) -> Licence | None:
    """The licence that a card's metadata, or a manifest, names; None where it names none."""
    named = metadata.get("license")
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    if isinstance(named, Mapping):
        return Licence(id=str(named["id"]), name=named.get("name"), link=named.get("link"))
    if not isinstance(named, str) or not named.strip() or named == "unknown":
        return None
    return Licence(id=named, name=metadata.get("license_name"), link=metadata.get("license_link"))


def licence_of_folder(folder: Path) -> Licence | None:
    """The licence in the head of a local folder's README.md; None where there is none."""
    readme = folder / "README.md"
    found = _HEAD.match(readme.read_text(encoding="utf-8", errors="replace")) if readme.is_file() else None
    if found is None:
        return None
    try:
        head = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return None
    return licence_from(head) if isinstance(head, dict) else None


def check_terms(licence: Licence, repo_id: str) -> str | None:
    """The NOTICE text that the licence wants beside the weights, or None.

    Raises:
        HubError: the licence does not allow a model of this name, or is ``other`` without a name.
    """
    if licence.id == "other" and not licence.name:
        raise HubError(f"the licence of {repo_id} is 'other': give its name and link too", repo_id=repo_id)
    terms = TERMS.get(licence.id)
    if terms is None:
        return None
    name = repo_id.split("/")[1]
    if terms.name_prefix and not name.lower().startswith(terms.name_prefix.lower()):
        better = f"{repo_id.split('/')[0]}/{terms.name_prefix}-{name}"
        raise HubError(
            f"the licence {licence.id} wants a model's name to begin with {terms.name_prefix}: publish as {better}",
            repo_id=repo_id,
        )
    return terms.notice
