"""`sftknow publish`: a model, a graded data set or a whole run to the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.effects import Case, no_effect, refuse
from sftknow.cli.options import Commands, add_wait, command


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "publish",
        "publish a run, a model or a graded data set to the Hub, with cards",
        "sftknow publish runs/lab --to org --dry-run\n"
        "  sftknow publish runs/lab --to org --only data,results\n"
        "  sftknow publish runs/lab/mastery/dataset --to org/facts-graded --data-licence mit\n"
        "  sftknow publish restored --to org/model-restored --dataset org/facts-graded --public",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run, a model or a graded data set of sftknow")
    parser.add_argument("--to", required=True, metavar="ORG[/NAME]", help="ORG for a run, else ORG/NAME")
    parser.add_argument("--public", action="store_true", help="readable by everyone (default: private)")
    parser.add_argument("--dry-run", action="store_true", help="print what would go where and stop")
    parser.add_argument("--licence", metavar="ID", help="of the base model (or of the data, where that is published)")
    parser.add_argument("--licence-name", metavar="NAME", help="its name, where --licence is `other`")
    parser.add_argument("--licence-link", metavar="URL", help="where it can be read")
    parser.add_argument("--licence-file", type=Path, metavar="FILE", help="its text, where the base has none beside it")
    parser.add_argument("--data-licence", metavar="ID", help="of the source of the facts")
    parser.add_argument(
        "--replace-card",
        action="store_true",
        help="give up what somebody changed on the Hub in the part of the card that sftknow writes",
    )
    add_wait(parser)
    parser.add_argument("--base", metavar="ORG/NAME", help="where the base is on the Hub, with @revision")
    run = parser.add_argument_group("for a run")
    run.add_argument("--name", metavar="NAME", help="what the repositories' names begin with (default: the folder's)")
    run.add_argument(
        "--only", metavar="A,B", help="of data, tuned, restored, results, or cells such as b2-n240-s0 (default: all)"
    )
    run.add_argument("--report-space", action="store_true", help="put the report up as a static Space, too")
    run.add_argument("--collection", action="store_true", help="gather all that is published in one Collection")
    model = parser.add_argument_group("for one model")
    model.add_argument("--dataset", metavar="ORG/NAME", help="where its graded data set is on the Hub")
    model.add_argument("--revision", default="main", metavar="BRANCH", help="branch to publish to (default: main)")
    model.add_argument(
        "--scores",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="what `sftknow evaluate --out` wrote: earlier models first, this one last (default: its run's)",
    )
    model.add_argument("--changes", type=Path, metavar="DIR", help="what `sftknow changes --out` wrote")
    other = Case("--licence", lambda text: text.partition(":")[0] == "other", "--licence other")
    no_effect(parser, "--licence-name", "--licence-link", needs=(other,))
    parser.set_defaults(run=run_command, goes_on=lambda given: "--dry-run" not in given)


def run_command(arguments: argparse.Namespace) -> None:
    """Plan, print the plan, publish."""
    from sftknow.models.hub_client import Connection, Patience
    from sftknow.publishing.publish import check_token
    from sftknow.run.publishing import is_run

    if not arguments.dry_run and arguments.folder.is_dir():
        # Before the plan: it may be hundreds of lines, and gigabytes are hashed for it.
        check_token(Connection.open(patience=Patience.of(arguments.wait)), arguments.to)
    if is_run(arguments.folder):
        _publish_run(arguments)
    else:
        _publish_one(arguments)


def _publish_run(arguments: argparse.Namespace) -> None:
    from sftknow.errors import HubError
    from sftknow.models.hub_client import Patience
    from sftknow.publishing.collection import collect
    from sftknow.publishing.licences import named_licence
    from sftknow.publishing.receipts import PublishReceipt
    from sftknow.run.publishing import RunOptions, plan_run, publish_run

    refuse(arguments.given, ("--dataset", "--revision", "--scores", "--changes"), f"{arguments.folder} is a run")
    if "/" in arguments.to:
        owner, _, name = arguments.to.partition("/")
        raise HubError(f"a run becomes several repositories: give --to {owner} --name {name}")
    options = RunOptions(
        to=arguments.to,
        name=arguments.name,
        private=not arguments.public,
        only=tuple(part.strip() for part in arguments.only.split(",")) if arguments.only else (),
        licence=named_licence(arguments.licence, arguments.licence_name, arguments.licence_link),
        licence_file=arguments.licence_file,
        data_licence=named_licence(arguments.data_licence, None, None),
        base_repo=arguments.base,
        report_space=arguments.report_space,
        replace_card=arguments.replace_card,
        wait=arguments.wait,
    )
    print(plan_run(arguments.folder, options))
    title = arguments.name or arguments.folder.resolve().name
    if arguments.collection:
        seen = "public" if arguments.public else "private"
        print(f"a {seen} Collection {title!r} of {arguments.to} with all of them")
    if arguments.dry_run:
        return

    def say(receipt: PublishReceipt) -> None:
        print(f"published: {receipt.url} at {receipt.revision}", flush=True)

    receipts = publish_run(arguments.folder, options, say=say)
    if arguments.collection:
        patience = Patience.of(arguments.wait)
        print(f"in one Collection: {collect(receipts, title=title, private=options.private, patience=patience)}")


def _publish_one(arguments: argparse.Namespace) -> None:
    from sftknow.models.hub_client import Patience
    from sftknow.publishing.licences import named_licence
    from sftknow.publishing.publish import plan_publication, publish
    from sftknow.publishing.runs import given_evaluation

    refuse(arguments.given, ("--name", "--only", "--report-space", "--collection"), f"{arguments.folder} is no run")
    patience = Patience.of(arguments.wait)
    evaluation = None
    if arguments.scores or arguments.changes:
        evaluation = given_evaluation(arguments.folder, arguments.scores or (), arguments.changes)
    plan = plan_publication(
        arguments.folder,
        arguments.to,
        private=not arguments.public,
        licence=named_licence(
            arguments.licence or arguments.data_licence, arguments.licence_name, arguments.licence_link
        ),
        licence_file=arguments.licence_file,
        evaluation=evaluation,
        dataset_repo=arguments.dataset,
        base_repo=arguments.base,
        revision=arguments.revision,
        patience=patience,
    )
    print(plan)
    if arguments.dry_run:
        return
    receipt = publish(plan, replace_card=arguments.replace_card, patience=patience)
    print(f"published: {receipt.url} at {receipt.revision}")
