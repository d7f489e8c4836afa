"""The card of a model that lies on this machine; `sftknow publish` makes the one for the Hub anew."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from sftknow.artifacts.files import write_text
from sftknow.errors import HubError
from sftknow.publishing.cards import Licence, render_model_card
from sftknow.publishing.contexts import build_model_context

CARD = "README.md"
_UNKNOWN = Licence(id="unknown")


def write_card(folder: Path, name: str) -> str | None:
    """Write ``README.md`` of a model folder that has its ``sftknow.json``.

    A licence that nobody stated is ``unknown`` here; on the Hub it is asked for.

    Args:
        folder: the model.
        name: what to call it.

    Returns:
        Why there is no card, where a card cannot be made of what the folder knows; None where there is one.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
    reason = ""
    for licence in (None, _UNKNOWN):
        try:
            context = build_model_context(folder, repo_id=f"local/{plain}", licence=licence)
            # The drawing of restored versions is made for the Hub alone.
            card = render_model_card(dataclasses.replace(context, levels=()))
        except HubError as error:
            reason = str(error)
            continue
        write_text(folder / CARD, card)
        return None
    return reason


def card_writer(say: Callable[[str], object]) -> Callable[[Path, Path], None]:
    """What gives each restored folder its card, for `restore_levels`; a line where it cannot."""

    def write(partial: Path, place: Path) -> None:
        reason = write_card(partial, place.resolve().name)
        if reason:
            say(f"no card in {place}: {reason}")

    return write
