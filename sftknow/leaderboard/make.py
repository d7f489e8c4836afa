"""From a data set's name to its leaderboard."""

from __future__ import annotations

from datetime import UTC, datetime

from sftknow.leaderboard.collect import collect, is_repo
from sftknow.leaderboard.ranking import rank
from sftknow.leaderboard.standings import Leaderboard, LeftOut, Standing
from sftknow.models.hub_client import Connection
from sftknow.records import Split


def make_leaderboard(dataset: str, *, split: Split = "test", link: Connection | None = None) -> Leaderboard:
    """Collect, check and rank every public model that has results for a graded data set on the Hub.

    Args:
        dataset: ``org/name``, or ``org/name@revision`` for an earlier version.
        split: that models are ranked on: ``dev``, ``test`` or ``testood``.
        link: to the Hub; None for the one of the environment.

    Raises:
        HubError: there is no such data set, or the Hub could not be reached.
        MasteryDataError: it is no graded data set, or was changed after it was published.
    """
    found = collect(dataset, link or Connection.open())
    left_out = [
        LeftOut(repo_id=one.repo_id, branch=one.branch, reason=f"it has no results on {split}")
        for one in found.entrants
        if split not in one.scores
    ]
    entrants = [one for one in found.entrants if split in one.scores]
    standings = [
        Standing(
            repo_id=one.repo_id,
            branch=one.branch,
            commit=one.commit,
            told_by=one.told_by,
            own=one.own,
            answers=one.right is not None and split in one.right,
            weights=one.weights,
            scores=one.scores,
            rank=place.rank,
            best=place.best,
            worst=place.worst,
        )
        for one, place in zip(entrants, rank(entrants, split), strict=True)
    ]
    data = found.questions.data
    grader = data.graded_by.partition("@")[0]
    return Leaderboard(
        dataset=found.questions.repo.repo_id,
        commit=str(found.questions.repo.commit),
        fingerprint=data.fingerprint,
        graded_by=grader if is_repo(grader) else "a model that is not on the Hub",
        split=split,
        counts=found.questions.counts,
        standings=tuple(sorted(standings, key=lambda one: (one.rank, one.repo_id, one.branch))),
        left_out=tuple(sorted((*found.left_out, *left_out), key=lambda one: (one.repo_id, one.branch))),
        private=found.private,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    )
