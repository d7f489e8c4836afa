"""What a model says of itself: ``sftknow.json`` beside its weights and its model card, in a folder or on the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sftknow.artifacts.manifests import MANIFEST, read_manifest
from sftknow.errors import ModelError, first_line
from sftknow.models.hub_files import Repo, open_repo
from sftknow.records import ModelRef

_CARD = "README.md"
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


class ModelNotes:
    """One model's notes, each file read once.

    Every method may raise HubError where the Hub refused or could not be reached.
    """

    def __init__(self, ref: ModelRef) -> None:
        self.ref = ref
        self.local = Path(ref.path).is_dir()

    @cached_property
    def repo(self) -> Repo | None:
        """The repository on the Hub at its commit; None for a folder."""
        if self.local or not _HUB_ID.fullmatch(self.ref.path):
            return None
        return open_repo(self.ref.path, self.ref.revision, "model")

    def file(self, name: str) -> Path | None:
        """A file of the model, or None where it has none of that name."""
        if self.local:
            path = Path(self.ref.path) / name
            return path if path.is_file() else None
        return self.repo.file(name) if self.repo else None

    @cached_property
    def folder(self) -> Path | None:
        """The local folder with the manifest; None where there is none."""
        found = self.file(MANIFEST)
        return found.parent if found else None

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """The content of ``sftknow.json``; empty where there is none. Raises RunError where it is damaged."""
        return (read_manifest(self.folder, "model") if self.folder else None) or {}

    @property
    def training_facts(self) -> tuple[str, ...]:
        """Ids of the facts that the model was fine-tuned on; empty where the manifest names none."""
        ids: Sequence[Any] = (self.manifest.get("sft") or {}).get("fact_ids") or ()
        return tuple(map(str, ids))

    @cached_property
    def card_datasets(self) -> list[str]:
        """The entries of ``datasets:`` in the card's metadata, in their order.

        Raises:
            ModelError: the metadata is no YAML.
        """
        card = self.file(_CARD)
        if card is None:
            return []
        named = card_metadata(card).get("datasets")
        return [entry for entry in (named if isinstance(named, list) else [named]) if isinstance(entry, str)]


def card_metadata(card: Path) -> Mapping[str, Any]:
    """The YAML head of a model or data set card; empty where it has none.

    Raises:
        ModelError: it is no YAML.
    """
    text = card.read_text(encoding="utf-8-sig", errors="replace")
    parts = re.split(r"^---[ \t]*$", text, maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        metadata = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ModelError(f"the metadata of {card} is no YAML: {first_line(error)}") from None
    return metadata if isinstance(metadata, dict) else {}


def training_facts(models: Sequence[ModelNotes]) -> tuple[str, ...] | None:
    """Ids of the facts that a model was fine-tuned on; None where it names none.

    Args:
        models: the model; where it is an adapter with its base, the adapter first.
    """
    return next((facts for notes in models if (facts := notes.training_facts)), None)
