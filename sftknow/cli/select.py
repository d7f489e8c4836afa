"""`sftknow select`: what of these SFT data does the model already know, and what should it be trained on?"""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.options import Commands, add_forms, add_options, command, options_of, show
from sftknow.models.options import ModelOptions
from sftknow.recipes.schema import FactsSection
from sftknow.selecting.options import SelectOptions


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "select",
        "what of these SFT data does a model already know, and what should it be trained on?",
        "sftknow select train.jsonl --model org/base --size 240 --out selected\n"
        "  sftknow select org/data --model base --columns prompt=question,completion=answer --markdown -",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="prompt and completion, messages, or facts: a JSONL, JSON, CSV or Parquet file, a folder, org/name",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="the model before SFT: a folder, org/name[@revision], or `lab`",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write the draw and the five buckets as a data set there"
    )
    add_options(parser, SelectOptions, "size")
    add_options(parser, SelectOptions, "buckets", otherwise="1,2,3, and 4 where these hold too few")
    add_options(parser, SelectOptions, "limit", "minutes", "samples", "shots", "templates", "short", "temperature")
    add_options(parser, SelectOptions, "max_new_tokens", "seed")
    parser.add_argument(
        "--columns", metavar="NAME=COLUMN,…", help="which column is what: prompt=question,completion=answer"
    )
    parser.add_argument("--config", metavar="NAME", help="of a data set with several configurations the one to read")
    add_options(parser, FactsSection, "topics", "synonyms")
    add_forms(parser, json="everything", markdown="a summary")
    add_options(parser, ModelOptions, "device", "dtype")
    parser.set_defaults(run=run, goes_on=lambda given: True)


def run(arguments: argparse.Namespace) -> int:
    """Grade, draw, write, print."""
    from sftknow.artifacts.selections import SelectResult
    from sftknow.run.selecting import select
    from sftknow.selecting.words import markdown, text

    facts = options_of(FactsSection, arguments)
    result = select(
        arguments.data,
        arguments.model,
        out=arguments.out,
        columns=arguments.columns,
        config=arguments.config,
        topics=facts.topics,
        synonyms=facts.synonyms,
        options=options_of(SelectOptions, arguments),
        running=options_of(ModelOptions, arguments),
    )
    show(arguments, result, text, json=SelectResult.to_json, markdown=markdown)
    return 0
