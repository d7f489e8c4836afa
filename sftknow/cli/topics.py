"""`sftknow topics`: the relations that facts may have, by id and by name."""

from __future__ import annotations

import argparse

from sftknow.cli.options import Commands, add_options, command, options_of
from sftknow.recipes.schema import FactsSection


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "topics",
        "the relations that facts may have, their names and how they are asked",
        "sftknow topics\n  sftknow topics --topics my-topics.json",
    )
    add_options(parser, FactsSection, "topics")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print one relation a line."""
    from sftknow.facts.topics import load_topics, relation_names
    from sftknow.report.terminal import text_table

    wanted, names = options_of(FactsSection, arguments), relation_names()
    rows = [
        [name, ", ".join(names.get(name, ())), topic.domain, str(len(topic.templates)), topic.question]
        for name, topic in load_topics(wanted.topics).items()
    ]
    print(text_table(["relation", "names", "domain", "statements", "question"], rows, left=True))
