"""A leaderboard as a page on this machine and, where asked for, as a static Space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sftknow.leaderboard.make import make_leaderboard
from sftknow.leaderboard.page import DATA, PAGE, TABLE, check_place, text, write_page
from sftknow.models.hub_client import Connection, check_repo_id
from sftknow.publishing.publish import publish
from sftknow.publishing.space import plan_space
from sftknow.records import Split


def leaderboard(
    dataset: str,
    out: Path,
    *,
    split: Split = "test",
    space: str | None = None,
    private: bool = True,
    endpoint: str | None = None,
    token: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Make the leaderboard of a graded data set; return the path of its page.

    Args:
        dataset: ``org/name[@revision]`` on the Hub.
        out: folder to write to: a new or empty one, or that of an earlier leaderboard.
        split: that models are ranked on: ``dev``, ``test`` or ``testood``.
        space: ``org/name`` of a static Space to put it up as; it is brought up to date where it is there.
        private: who may see the Space.
        endpoint, token: of the Hub.
        say: gets what a person should read.

    Raises:
        HubError: the Hub refused or could not be reached.
        MasteryDataError: there is no such graded data set.
        RunError: the folder holds something else.
    """
    check_place(out)
    if space:
        check_repo_id(space)
    link = Connection.open(endpoint=endpoint, token=token)
    board = make_leaderboard(dataset, split=split, link=link)
    page = write_page(out, board, hub=link.api.endpoint)
    say(text(board))
    say(f"\nleaderboard: {page}")
    if space:
        name = board.dataset.partition("/")[2]
        plan = plan_space(
            out,
            space,
            {file: (out / file).read_bytes() for file in (PAGE, DATA, TABLE)},
            title=f"Leaderboard of {name}",
            about=f"Public models with results for the graded data set {board.dataset}, checked. Made with sftknow.",
            private=private,
            datasets=(board.dataset,),
        )
        receipt = publish(plan, endpoint=endpoint, token=token)
        say(f"published: {receipt.url} at {receipt.revision}")
    return page
