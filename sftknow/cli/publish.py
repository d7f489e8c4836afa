"""`sftknow publish`: a model or a graded data set to the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.options import Commands, command


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "publish",
        "publish a model or a graded data set to the Hub, with its card",
        "sftknow publish runs/lab/mastery/dataset --to org/facts-graded --licence mit\n"
        "  sftknow publish restored --to org/model-restored --dataset org/facts-graded --licence apache-2.0 --public",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a model or graded data set that sftknow wrote")
    parser.add_argument("--to", required=True, metavar="ORG/NAME", help="repository on the Hub")
    parser.add_argument("--public", action="store_true", help="readable by everyone (default: private)")
    parser.add_argument(
        "--licence", metavar="ID", help="licence of the data or the base model, by the Hub's identifier"
    )
    parser.add_argument("--dataset", metavar="ORG/NAME", help="where the model's graded data set is on the Hub")
    parser.add_argument("--base", metavar="ORG/NAME", help="where the model's base is on the Hub, with @revision")
    parser.add_argument("--revision", default="main", metavar="BRANCH", help="branch to publish to (default: main)")
    parser.add_argument("--dry-run", action="store_true", help="print what would go where and stop")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Plan, print the plan, publish."""
    from sftknow.hub.publish import plan_publication, publish

    plan = plan_publication(
        arguments.folder,
        arguments.to,
        private=not arguments.public,
        licence=arguments.licence,
        dataset_repo=arguments.dataset,
        base_repo=arguments.base,
        revision=arguments.revision,
    )
    print(plan)
    if arguments.dry_run:
        return
    receipt = publish(plan)
    print(f"published: {receipt.url} at {receipt.revision}")
