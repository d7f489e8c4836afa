"""`sftknow tasks`: where lm-eval's task files are."""

from __future__ import annotations

import argparse

from sftknow.cli.options import Commands, command


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "tasks",
        "the lm-eval tasks: their folder and their names",
        'lm_eval --include_path "$(sftknow tasks path)" --model hf --model_args pretrained=tuned --tasks cbqa_mastery',
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    path = command(actions, "path", "print the folder, for lm_eval --include_path", "sftknow tasks path")
    path.set_defaults(run=run_path)
    names = command(actions, "list", "print the names of groups and tasks", "sftknow tasks list")
    names.set_defaults(run=run_list)


def run_path(arguments: argparse.Namespace) -> None:
    """Print the folder of the YAML files."""
    from sftknow.resources import task_folder

    print(task_folder())


def run_list(arguments: argparse.Namespace) -> None:
    """Print every group and task."""
    from sftknow.evaluation.tasks import task_names

    print("\n".join(task_names()))
