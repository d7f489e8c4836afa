"""`sftknow repair`: bring back what fine-tuning made a model forget."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.checking.options import RepairOptions
from sftknow.cli.effects import no_effect
from sftknow.cli.options import (
    Commands,
    add_facts,
    add_forms,
    add_model,
    add_options,
    command,
    facts_of,
    options_of,
    say,
    show,
)
from sftknow.models.options import ModelOptions
from sftknow.parameters.options import MethodOptions


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "repair",
        "bring back what fine-tuning made a model forget; exit code 0: done, or nothing was lost, 1: nothing helps, 3: "
        "it cannot be told",
        "sftknow repair org/base my-tuned-model --out repaired\n"
        "  sftknow repair base tuned --keep gsm8k --out repaired\n"
        "  sftknow repair base tuned --keep my-task.jsonl --methods interpolation,lines --minutes 60 --out repaired\n"
        "  sftknow repair base adapter --adapter --out repaired-adapter\n"
        "  sftknow repair base tuned --patch --out repair.safetensors      (sftknow restore tuned --apply-patch …)",
    )
    add_model(parser, "base", "the model before fine-tuning")
    add_model(parser, "tuned", "the fine-tuned model, or a LoRA adapter")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the repaired model goes, if one surely helps (default: nowhere)"
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--patch", action="store_true", help="write a sparse file of the difference instead of a model")
    forms.add_argument(
        "--adapter", action="store_true", help="write a LoRA adapter of the old rank instead of a model, and its error"
    )
    parser.add_argument(
        "--keep",
        metavar="TASK|FILE",
        help="what must not be lost: a task of lm-eval, a task's .yaml, or a .jsonl of prompt and answer (default: the "
        "answers to the facts' questions)",
    )
    add_options(parser, RepairOptions, "keep_margin", "keep_rows", "margin", "minutes")
    add_facts(parser)
    trying = parser.add_argument_group("what is tried")
    add_options(trying, MethodOptions, "methods", "strengths", "common_rows", "ignore")
    asking = parser.add_argument_group("how facts are asked")
    add_options(asking, RepairOptions, "templates", "samples", "max_new_tokens", "block", "seed")
    add_forms(parser, json="everything", markdown="a summary for a pull request")
    add_options(parser, ModelOptions, "device", "dtype", "batch_size")
    no_effect(parser, "--keep-rows", needs=("--keep",))
    no_effect(parser, "--patch", needs=("--out",))
    no_effect(parser, "--batch-size", needs=("--keep",))
    parser.set_defaults(run=run, goes_on=lambda given: True)


def run(arguments: argparse.Namespace) -> int:
    """Repair, print, and tell by the exit code."""
    from sftknow.artifacts.repairs import RepairResult
    from sftknow.checking.repair_words import markdown, text
    from sftknow.run.repairing import repair

    result = repair(
        arguments.base,
        arguments.tuned,
        out=arguments.out,
        form="patch" if arguments.patch else "adapter" if arguments.adapter else "model",
        keep=arguments.keep,
        facts=facts_of(arguments),
        options=options_of(RepairOptions, arguments),
        methods=options_of(MethodOptions, arguments),
        running=options_of(ModelOptions, arguments),
        say=say,
    )
    show(arguments, result, text, json=RepairResult.to_json, markdown=markdown)
    return result.exit_code
