"""The names of the tasks that the YAML files define, as lm-eval itself sees them."""

from __future__ import annotations

from lm_eval.tasks import TaskManager

from sftknow.resources import task_folder


def task_names() -> list[str]:
    """All groups and leaf tasks, sorted. A file that does not parse is missing: lm-eval skips it without a word."""
    manager = TaskManager(include_path=str(task_folder()), include_defaults=False)
    return sorted(manager.all_tasks)
