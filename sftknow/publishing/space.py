"""Static pages as Spaces of the Hub: a run's report, a leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sftknow.artifacts.files import visible_files
from sftknow.artifacts.manifests import FORMAT
from sftknow.errors import HubError
from sftknow.models.hub_client import check_repo_id
from sftknow.publishing.plan import PublicationPlan, assemble
from sftknow.publishing.results import public_text

PAGE = "index.html"
REPORT = "report.html"


def plan_space(
    artifact: Path,
    repo_id: str,
    files: Mapping[str, bytes],
    *,
    title: str,
    about: str,
    private: bool = True,
    datasets: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
) -> PublicationPlan:
    """Plan a static Space. Nothing is sent.

    Args:
        artifact: the folder that the files come from.
        repo_id: ``org/name``.
        files: contents by path, ``index.html`` among them.
        title: shown in the list of Spaces.
        about: one sentence for its card.
        private: who may see it.
        datasets, models: ids on the Hub that it is about.
    """
    check_repo_id(repo_id)
    head: dict[str, Any] = {
        "title": title,
        "emoji": "📊",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "static",
        "app_file": PAGE,
        "pinned": False,
        "tags": ["sftknow"],
        **({"datasets": list(datasets)} if datasets else {}),
        **({"models": list(models)} if models else {}),
    }
    card = f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n# {title}\n\n{about}\n"
    return assemble(
        artifact,
        repo_id,
        repo_type="space",
        private=private,
        revision="main",
        files=[],
        made=files,
        card=card,
        head={"sftknow": FORMAT, "kind": "page"},
        what="a page",
    )


def plan_report_space(
    run: Path, repo_id: str, *, name: str, private: bool, datasets: tuple[str, ...], models: tuple[str, ...]
) -> PublicationPlan:
    """The report of a run, with its tables and figures, as a static Space. No path of this machine goes along.

    Raises:
        HubError: the run has no report.
    """
    folder = run / "report"
    if not (folder / REPORT).is_file():
        raise HubError(f"{run} has no report yet: make it with `sftknow report {run}`", repo_id=repo_id)
    clean = public_text(run)
    found = {path.relative_to(folder).as_posix(): clean(path) for path in visible_files(folder)}
    files = {PAGE if path == REPORT else path: content for path, content in found.items()}
    about = f"The report of the run “{name}”: what fine-tuning did to what a model knows. Made with sftknow."
    return plan_space(
        run,
        repo_id,
        files,
        title=f"{name}: what fine-tuning did",
        about=about,
        private=private,
        datasets=datasets,
        models=models,
    )
