"""What every result offers in Python: a table for pandas, JSON, and a view in a notebook."""

from __future__ import annotations

import html
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 20
"""Rows of the table in a notebook; `Shown.to_pandas` has all."""


_WIDEST = 120
"""Characters of a line of prose on the widest terminal."""


def wrapped(text: str, stream: TextIO) -> str:
    """Prose as the terminal behind a stream shows it best: lines broken between words. A file gets it as it is.

    Lines of a table, and what is to be copied from a line of its own, stay whole: they begin with a blank or have two
    blanks in a row.
    """
    if not stream.isatty():
        return text
    width = min(shutil.get_terminal_size().columns, _WIDEST) - 1

    def lines(line: str) -> list[str]:
        if len(line) <= width or line.startswith(" ") or "  " in line:
            return [line]
        hanging = "  " if line.startswith("• ") else ""
        # A number and its unit or error stay together.
        tied = line.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")
        found = textwrap.wrap(tied, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)
        return [part.replace("\u00a0", " ") for part in found]

    return "\n".join(part for line in text.split("\n") for part in lines(line))


class Shown:
    """Mixed into a result that has a table of rows, and mostly a sentence that says what was found.

    @dataclass(frozen=True, kw_only=True)
    class Finding(Shown):
        counts: Mapping[str, int]

        def rows(self) -> list[dict[str, Any]]:
            return [{"name": name, "count": count} for name, count in self.counts.items()]
    """

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The result as a table, all rows with the same keys."""
        raise NotImplementedError

    def headline(self) -> str:
        """What was found, in one sentence; empty where the table speaks for itself."""
        return ""

    def to_pandas(self) -> pd.DataFrame:
        """`rows` as a data frame."""
        import pandas as pd

        return pd.DataFrame(list(self.rows()))

    def to_json(self) -> str:
        """Everything, fields of fields included. What a terminal would not show as it is stands as ``\\u…``."""
        from sftknow.records import to_json

        text = json.dumps(to_json(self), ensure_ascii=False, indent=2)
        strange = {char for char in set(text) if not char.isprintable() and char != "\n"}
        return text.translate({ord(char): json.dumps(char)[1:-1] for char in strange})

    def _repr_html_(self) -> str:
        """The sentence and the first rows. Names and texts of others are escaped."""
        table, said = self.to_pandas(), self.headline()
        more = f"<p>{len(table):,} rows; to_pandas() has all of them</p>" if len(table) > _ROWS else ""
        head = f"<p><b>{html.escape(said)}</b></p>" if said else ""
        return f"{head}{table.head(_ROWS).to_html(index=False)}{more}"
