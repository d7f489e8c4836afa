"""`sftknow check`: did fine-tuning hurt what the model knows?"""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.checking.options import CheckOptions
from sftknow.cli.options import (
    Commands,
    add_facts,
    add_forms,
    add_model,
    add_options,
    command,
    facts_of,
    options_of,
    show,
)
from sftknow.models.options import ModelOptions


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "check",
        "did fine-tuning hurt what the model knows? exit code 0: no, 1: yes, 3: it cannot be told",
        "sftknow check org/base my-tuned-model\n"
        "  sftknow check base tuned --facts facts.jsonl --minutes 30 --markdown check.md",
    )
    add_model(parser, "base", "the model before fine-tuning")
    add_model(parser, "tuned", "the fine-tuned model")
    add_facts(parser)
    add_options(parser, CheckOptions, "margin", "precision", "minutes", "templates", "samples", "max_new_tokens")
    add_options(parser, CheckOptions, "block", "retry", "seed")
    parser.add_argument("--any-pair", action="store_true", help="take a tuned model that was not made from this base")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="keep check.json and what was asked there (default: the user's cache)"
    )
    add_forms(parser, json="everything", markdown="a summary for a pull request", html="one page")
    add_options(parser, ModelOptions, "device", "dtype")
    parser.set_defaults(run=run, goes_on=lambda given: True)


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and tell by the exit code."""
    from sftknow.artifacts.checks import CheckResult
    from sftknow.checking.page import page
    from sftknow.checking.words import markdown, text
    from sftknow.run.checking import check

    result = check(
        arguments.base,
        arguments.tuned,
        facts=facts_of(arguments),
        options=options_of(CheckOptions, arguments),
        running=options_of(ModelOptions, arguments),
        out=arguments.out,
        any_pair=arguments.any_pair,
    )
    show(arguments, result, text, json=CheckResult.to_json, markdown=markdown, html=page)
    return result.exit_code
