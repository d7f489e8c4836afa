"""Cards that people mend on the Hub: what sftknow writes stands between marks, and what stands outside them is kept.

The manifest notes what was written (`noted`), so that the next publication can tell a card that is as it was left from
one that somebody changed. Additions are kept: text outside the marks, and entries of the metadata that sftknow does not
write. A change to what sftknow wrote is a conflict, and only a person decides about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from sftknow.artifacts.files import digest
from sftknow.errors import HubError
from sftknow.untrusted import printable

BEGIN = "<!-- From here on sftknow writes. What you add above or below this part is kept. -->"
END = "<!-- This is where the part ends that sftknow writes. -->"

_SHOWN = 3
"""Changed lines that a message quotes."""


class Card(NamedTuple):
    """A README.md in its parts."""

    head: str
    """YAML between the lines of three dashes; empty where there is none."""
    above: str
    body: str | None
    """What stands between the marks; None where they are not there, once and in order."""
    below: str

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The head's entries; none where it cannot be read."""
        try:
            found = yaml.safe_load(self.head)
        except (yaml.YAMLError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {}


def marked(card: str) -> str:
    """A card as it is rendered, with marks around all but its head."""
    head, above, _, _ = split_card(card)
    return _joined(head, f"{BEGIN}\n\n{above.strip()}\n\n{END}\n")


def noted(card: str) -> dict[str, Any]:
    """What the manifest keeps of a marked card: digests of the text, and of each entry of the metadata."""
    found = split_card(card)
    return {"text": _text(found.body), "metadata": {key: _entry(value) for key, value in found.metadata.items()}}


def split_card(content: str) -> Card:
    """The parts of a README.md. Line ends of other systems do not matter."""
    text = content.replace("\r\n", "\n").removeprefix("\ufeff")
    head, rest = "", text
    if text.startswith("---\n"):
        inner, dashes, behind = text[4:].partition("\n---\n")
        head, rest = (inner, behind) if dashes else ("", text)
    if rest.count(BEGIN) == rest.count(END) == 1 and rest.index(BEGIN) < rest.index(END):
        above, _, behind = rest.partition(BEGIN)
        body, _, below = behind.partition(END)
        return Card(head, above, body, below)
    return Card(head, rest, None, "")


def merge(ours: str, theirs: str, known: Any, repo_id: str, *, replace: bool = False) -> str:
    """The card to send where one is there already.

    Args:
        ours: the new card, marked.
        theirs: the card on the Hub.
        known: `noted` of the card that was sent before, from the manifest there; None where none was.
        repo_id: for the message.
        replace: what people changed in sftknow's part is replaced instead of refused.

    Raises:
        HubError: somebody changed what sftknow wrote. The message quotes the changes.
    """
    new, old = split_card(ours), split_card(theirs)
    if old.body is None and not old.above.strip():
        old = old._replace(body="")  # a head without a text, as the Hub's own form makes it
        known = known or {"text": _text("")}
    known = known if isinstance(known, Mapping) else {}
    sent = known.get("metadata") if isinstance(known.get("metadata"), Mapping) else {}
    changes = [] if replace else [*_changed_text(new, old, known), *_changed_entries(new.metadata, old.metadata, sent)]
    if changes:
        more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
        raise HubError(
            f"README.md of {repo_id} was changed by hand where sftknow writes ({'; '.join(changes[:_SHOWN])}{more}): "
            "move the change above or below sftknow's part, or give it up with --replace-card",
            repo_id=repo_id,
        )
    extra = {k: v for k, v in old.metadata.items() if k not in new.metadata and _entry(v) != sent.get(k)}
    if old.metadata == {**new.metadata, **extra} and _text(old.body) == _text(new.body):
        return theirs  # nothing of ours is new: their order and their line ends stay
    head = new.head
    if extra:
        head += "\n" + yaml.safe_dump(extra, sort_keys=False, allow_unicode=True).rstrip("\n")
    kept = old.body is not None
    above = old.above.strip() if kept else ""
    below = old.below.strip() if kept else ""
    body = f"{BEGIN}{new.body}{END}"
    return _joined(head, "\n\n".join(part for part in (above, body, below) if part) + "\n")


def _changed_text(new: Card, old: Card, known: Mapping[str, Any]) -> list[str]:
    if _text(old.body) in (known.get("text"), _text(new.body)):
        return []
    before, after = (new.body or "").splitlines(), (old.above if old.body is None else old.body).splitlines()
    lines = [line[2:].strip() for line in difflib.ndiff(before, after) if line.startswith("+ ") and line[2:].strip()]
    return [f"“{printable(line, 60)}”" for line in lines] or ["lines are gone"]


def _changed_entries(new: Mapping[str, Any], old: Mapping[str, Any], sent: Mapping[str, Any]) -> list[str]:
    """Entries that somebody changed, or took away, which the new card would set back."""
    found = []
    for key, value in new.items():
        if _entry(old[key]) not in (sent.get(key), _entry(value)) if key in old else key in sent:
            told = printable(str(old[key]), 60) if key in old else "taken away"
            found.append(f"{printable(str(key), 60)}: {told}")
    return found


def _entry(value: Any) -> str:
    return digest(yaml.safe_dump(value, sort_keys=True))


def _text(body: str | None) -> str:
    return digest(None if body is None else body.strip())


def _joined(head: str, rest: str) -> str:
    return f"---\n{head}\n---\n\n{rest}" if head else rest
