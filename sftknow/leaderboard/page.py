"""A leaderboard for people: a static page, a spreadsheet, lines for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import jinja2

from sftknow.artifacts.files import write_json, write_text
from sftknow.errors import RunError
from sftknow.leaderboard.standings import Leaderboard, LeftOut, Standing
from sftknow.records import Split

PAGE, DATA, TABLE = "index.html", "leaderboard.json", "leaderboard.csv"

TITLES: Mapping[Split, str] = {
    "train": "training facts",
    "dev": "in-domain dev",
    "test": "in-domain test",
    "testood": "out-of-domain test",
}

_POINTS = (
    "The score is the percentage of questions whose greedy answer (16 tokens) contains the expected object or a "
    "synonym: the plain mean over the five mastery buckets.",
    "Behind the rank stand the ranks that the data leaves open: 1 and the number of models that are surely better, to "
    "the number of models less those that are surely worse. Two models with published answers are compared question by "
    "question (McNemar’s test, stratified by bucket), others by their standard errors; all comparisons are corrected "
    "together (Holm, 5 %).",
    "“Answers” means that the model’s answers are published and the score was worked out from them. “Weights” means "
    "that the weights are those that were published with the results. Without answers a score is what was told, "
    "checked for what it cannot be.",
    "Results of another version of the data set, of a part of its questions, or that contradict themselves are not "
    "counted.",
    "Buckets are relative to the model that graded the facts: a model is at an advantage on what its own base knows.",
)


def write_page(folder: Path, board: Leaderboard, *, hub: str) -> Path:
    """Write ``leaderboard.json``, ``leaderboard.csv`` and, last, ``index.html``; return the path of the page.

    Args:
        folder: a new or empty one, or that of an earlier leaderboard.
        board: what to show.
        hub: address of the Hub, for links.

    Raises:
        RunError: the folder holds something else.
    """
    check_place(folder)
    write_json(folder / DATA, board)
    write_text(folder / TABLE, _csv(board))
    write_text(folder / PAGE, render(board, hub=hub))
    return folder / PAGE


def check_place(folder: Path) -> None:
    """Raise RunError where a folder holds anything but an earlier leaderboard."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give a folder with --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DATA).is_file():
        raise RunError(f"{folder} holds other files; give a new or empty folder with --out")


def render(board: Leaderboard, *, hub: str) -> str:
    """The page. Everything that is text is escaped, and an undefined name is an error."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        board=board,
        hub=hub,
        subtitle=_subtitle(board),
        titles=TITLES,
        splits=_splits(board),
        buckets=[bucket for bucket, count in board.counts[board.split].items() if count],
        checked=_checked,
        points=_POINTS,
    )


def text(board: Leaderboard) -> str:
    """The leaderboard for a terminal."""
    width = max((len(_name(row)) for row in board.standings), default=0)
    lines = [f"{board.dataset} at {board.commit[:12]}, {TITLES[board.split]}, % (95 % interval)"]
    for row in board.standings:
        score = row.scores[board.split]
        shown = f"{100 * score.value:5.1f} ({100 * score.low:.1f}–{100 * score.high:.1f})"
        ranks = f"{row.rank:3} ({row.best}–{row.worst})"
        lines.append(f"{ranks:<12} {_name(row):<{width}}  {shown:<20} {_checked(row)}".rstrip())
    if not board.standings:
        lines.append("no public model has results that could be counted")
    lines += [f"not counted: {_name(row)}: {row.reason}" for row in board.left_out]
    return "\n".join(lines)


def _name(row: Standing | LeftOut) -> str:
    return row.repo_id if row.branch == "main" else f"{row.repo_id}@{row.branch}"


def _checked(row: Standing) -> str:
    found = [name for name, there in (("answers", row.answers), ("weights", row.weights)) if there]
    return " and ".join(found) or "numbers only"


def _splits(board: Leaderboard) -> list[Split]:
    """The ranked split first, then the others that somebody has a score on."""
    others = [split for split in TITLES if split != board.split and any(split in row.scores for row in board.standings)]
    return [board.split, *others]


def _subtitle(board: Leaderboard) -> str:
    questions = sum(board.counts[board.split].values())
    return (
        f"{questions:,} questions, graded by {board.graded_by} · commit {board.commit[:12]} · fingerprint "
        f"{board.fingerprint[:12]} · made {board.made} UTC"
    )


def _csv(board: Leaderboard) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    splits = _splits(board)
    buckets = [bucket for bucket, count in board.counts[board.split].items() if count]
    numbers = [f"{split}_{name}" for split in splits for name in ("accuracy", "low", "high")]
    own = [f"{board.split}_bucket_{bucket}" for bucket in buckets]
    writer.writerow(
        [
            "rank",
            "best_rank",
            "worst_rank",
            "model",
            "branch",
            "commit",
            *numbers,
            *own,
            "answers",
            "weights",
            "told_by",
        ]
    )
    for row in board.standings:
        line: list[object] = [row.rank, row.best, row.worst, row.repo_id, row.branch, row.commit]
        for split in splits:
            score = row.scores.get(split)
            line += [score.value, score.low, score.high] if score else ["", "", ""]
        line += [row.scores[board.split].buckets.get(bucket, "") for bucket in buckets]
        writer.writerow([*line, row.answers, row.weights, row.told_by])
    return out.getvalue()
