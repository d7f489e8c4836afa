"""Licences: carried over from what something was made from, or asked for; never guessed.

Some licences ask for more than their name on a card: a copy of the agreement beside the weights, a notice file with
their own words, a model name that begins with theirs, a line such as "Built with Llama". `TERMS` lists what they ask.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftknow.errors import HubError, ModelError
from sftknow.models.notes import card_metadata
from sftknow.publishing.cards import Licence

_PAPER = re.compile(r"(licen[cs]e|copying|notice|use[_-]policy)[^/]*(\.txt|\.md|\.rst|\.pdf|)", re.IGNORECASE)
"""File names of agreements, notices and use policies, at the root of a model."""

_OWN_WORDS = re.compile(r'[“"]([^“”"]{1,80} is licensed under the [^“”"]{1,300}?Rights\s+Reserved\.?)[”"]')
"""The notice as an agreement quotes it: the words differ between releases, so that those in the file go first."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a licence asks of those who pass a derived model on."""

    name_prefix: str | None = None
    """The model's name must begin with it."""
    built: str | None = None
    """Words that must be shown with the model."""
    notice: str | None = None
    """Words of the notice file that must lie beside the weights."""
    agreement: bool = True
    """A copy of the licence's text must lie beside the weights."""


def _meta(product: str, agreement: str, *, built: str | None = None, prefix: str | None = None, c: str = "©") -> Terms:
    notice = f"{product} is licensed under the {agreement}, Copyright {c} Meta Platforms, Inc. All Rights Reserved."
    return Terms(name_prefix=prefix, built=built, notice=notice)


def _alibaba(product: str, agreement: str) -> Terms:
    notice = f"{product} is licensed under the {agreement}, Copyright (c) Alibaba Cloud. All Rights Reserved."
    return Terms(built="Built with Qwen" if product == "Qwen" else None, notice=notice)


TERMS: Mapping[str, Terms] = {
    "llama2": _meta("Llama 2", "LLAMA 2 Community License", c="(c)"),
    "llama3": _meta(
        "Meta Llama 3", "Meta Llama 3 Community License", built="Built with Meta Llama 3", prefix="Llama-3"
    ),
    **{
        f"llama{v}": _meta(f"Llama {v}", f"Llama {v} Community License", built="Built with Llama", prefix="Llama")
        for v in ("3.1", "3.2", "3.3", "4")
    },
    "gemma": Terms(
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
    "qwen": _alibaba("Qwen", "Qwen LICENSE AGREEMENT"),
    "qwen-research": _alibaba("Qwen", "Qwen RESEARCH LICENSE AGREEMENT"),
    "tongyi-qianwen": _alibaba("Tongyi Qianwen", "Tongyi Qianwen LICENSE AGREEMENT"),
    "tongyi-qianwen-license-agreement": _alibaba("Tongyi Qianwen", "Tongyi Qianwen LICENSE AGREEMENT"),
    "tongyi-qianwen-research": _alibaba("Tongyi Qianwen", "Tongyi Qianwen RESEARCH LICENSE AGREEMENT"),
    "mrl": Terms(notice="Licensed by Mistral AI under the Mistral AI Research License"),
    "mnpl": Terms(notice="Licensed by Mistral AI under the Mistral AI Non-Production License"),
    "opt-175b": _meta("OPT-175B", "OPT-175B license", c="(c)"),
}
"""By the Hub's licence identifier, or by ``license_name`` where the identifier is ``other``.

Sources: section 1.b of the Llama community licences, section 3.1 of the Gemma Terms of Use, section 3 of the Qwen and
Tongyi Qianwen agreements and 4 of the former ("Built with Qwen"), section 2 of Mistral's, section 3 of OPT's.
Apache-2.0, MIT and the like ask for their own text and notices only, which are carried over wherever the base model has
them.
"""


@dataclass(frozen=True, kw_only=True)
class Papers:
    """The licence files of a model: agreements, notices, use policies."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    """By name, as they lie beside the base's weights."""

    @property
    def agreements(self) -> tuple[str, ...]:
        """Names of the files that hold the licence itself."""
        return tuple(name for name in sorted(self.files) if re.match(r"licen[cs]e|copying", name, re.IGNORECASE))

    @property
    def agreement(self) -> str | None:
        """Text of the licence itself; None where there is none."""
        return self.files[self.agreements[0]].decode("utf-8", errors="replace") if self.agreements else None

    @property
    def notice(self) -> str | None:
        """Text of the notice that the base came with."""
        found = [name for name in sorted(self.files) if re.match(r"notice", name, re.IGNORECASE)]
        return self.files[found[0]].decode("utf-8", errors="replace").strip() if found else None

    @property
    def others(self) -> Mapping[str, bytes]:
        """All files but the notice, which is written anew."""
        return {n: content for n, content in self.files.items() if not re.match(r"notice", n, re.IGNORECASE)}


def is_paper(name: str) -> bool:
    """True for the file name of an agreement, a notice or a use policy."""
    return _PAPER.fullmatch(name) is not None


def papers_of_folder(folder: Path) -> Papers:
    """The licence files at the root of a local model."""
    return Papers(files={p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and is_paper(p.name)})


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
    try:
        return licence_from(card_metadata(readme)) if readme.is_file() else None
    except ModelError:
        return None


def terms_of(licence: Licence) -> Terms | None:
    """What the licence asks for beyond its name; None where nothing is known."""
    named = licence.name.lower() if licence.id == "other" and licence.name else licence.id
    return TERMS.get(named)


def allowed_name(licence: Licence, repo_id: str) -> str:
    """The repository's name, with the beginning that the licence wants where it lacks it."""
    terms = terms_of(licence)
    owner, name = repo_id.split("/")
    if terms is None or not terms.name_prefix or _plain(name).startswith(_plain(terms.name_prefix)):
        return repo_id
    return f"{owner}/{terms.name_prefix}-{name}"


def check_named(licence: Licence, repo_id: str) -> None:
    """Raise HubError where a licence is ``other`` and nothing says which."""
    if licence.id == "other" and not licence.name:
        raise HubError(
            f"the licence of {repo_id} is 'other': give its name too (--licence-name NAME, or other:NAME)",
            repo_id=repo_id,
        )


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name).lower()


def check_terms(licence: Licence, repo_id: str, papers: Papers, *, base: str) -> str | None:
    """Text of the NOTICE file that belongs beside the weights, or None.

    Args:
        licence: of the base model.
        repo_id: where the derived model will lie.
        papers: what the base came with.
        base: what the base is called.

    Raises:
        HubError: the licence does not allow a model of this name, wants a copy of itself that is not there, or is
            ``other`` without a name.
    """
    check_named(licence, repo_id)
    terms = terms_of(licence)
    better = allowed_name(licence, repo_id)
    if terms and better != repo_id:
        raise HubError(
            f"the licence {licence.id} wants a model's name to begin with {terms.name_prefix}: publish as {better}",
            repo_id=repo_id,
        )
    if terms and terms.agreement and papers.agreement is None:
        raise HubError(
            f"the licence {licence.name or licence.id} wants a copy of itself beside {repo_id}, and {base} has none "
            "here: pass the file that came with it (--licence-file LICENSE)",
            repo_id=repo_id,
        )
    if terms is None and papers.notice is None:
        return None
    quoted = _OWN_WORDS.search(papers.agreement or "")
    words = " ".join(quoted[1].split()) if quoted and terms else terms.notice if terms else None
    parts = [terms.built if terms else None, words, papers.notice if papers.notice != words else None]
    changed = f"The weights here were made from those of {base} and are not the same; README.md says how."
    return "\n\n".join([*(part for part in parts if part), changed]) + "\n"


def named_licence(licence: str | None, name: str | None, link: str | None) -> Licence | None:
    """The licence that a user gave in words; ``other:NAME`` names one that the Hub has no identifier for.

    Raises:
        HubError: only its name or link was given.
    """
    if licence is None:
        if name or link:
            raise HubError("--licence-name and --licence-link go with --licence other")
        return None
    identifier, _, behind = licence.partition(":")
    return Licence(id=identifier, name=name or behind or None, link=link)
