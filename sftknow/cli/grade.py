"""`sftknow grade`: how well does a model know each fact?"""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.effects import no_effect
from sftknow.cli.options import Commands, add_options, command, options_of, say
from sftknow.cluster import Cluster
from sftknow.errors import RecipeError
from sftknow.grading.options import GradingOptions, VLLMOptions
from sftknow.models.options import ModelOptions
from sftknow.recipes.schema import FactsSection
from sftknow.records import ModelRef


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "grade",
        "grade facts by how well a model masters them, into five buckets",
        "sftknow grade my-model --facts facts.jsonl --out graded\n"
        "  sftknow grade org/model --facts entity-questions --limit 3000 --out graded --keep-texts\n"
        "  sftknow grade --rescore graded --match word --out graded-by-word",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="the base model: a folder, org/name[@revision], `lab`"
    )
    parser.add_argument(
        "--facts",
        metavar="SOURCE",
        help="`lab`, `quick` (1,200 facts in the box), `entity-questions` (downloaded), a folder, .zip, table, Hub id",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the graded data set")
    add_options(parser, FactsSection, "columns", "limit", "disjoint", "topics", "synonyms", "numbers")
    add_options(parser, GradingOptions, "samples", "temperature", "max_new_tokens", "seed", "certainty", "match")
    parser.add_argument("--case", choices=("sensitive", "ignore"), help="of answers (default: sensitive)")
    add_options(parser, GradingOptions, "keep_texts")
    parser.add_argument(
        "--dry-run", action="store_true", help="measure a few statements, print how long all take, and write nothing"
    )
    parser.add_argument("--force", action="store_true", help="grade again, though the same grading is there")
    parser.add_argument(
        "--rescore",
        type=Path,
        metavar="OLD",
        help="grade the kept texts of OLD again by --match, --case, --synonyms or --numbers, without the model",
    )
    add_options(parser, ModelOptions, "device", "dtype")
    add_options(parser, GradingOptions, "memory", "sampler", "engine")
    add_options(parser, VLLMOptions, "tensor_parallel", "data_parallel")
    add_options(parser, Cluster, "address", "replicas", cpus="cpus_per_replica", gpus="gpus_per_replica")
    no_effect(
        parser,
        *(
            "MODEL",
            "--facts",
            "--columns",
            "--limit",
            "--disjoint",
            "--topics",
            "--samples",
            "--temperature",
            "--max-new-tokens",
            "--seed",
            "--certainty",
            "--force",
            "--dry-run",
            "--device",
        ),
        *("--dtype", "--memory", "--sampler", "--engine"),
        beside=("--rescore",),
    )
    no_effect(parser, "--tensor-parallel", "--data-parallel", needs=("--sampler",), beside=("--sampler=transformers",))
    no_effect(parser, "--out", "--force", "--keep-texts", "--engine", beside=("--dry-run",))
    no_effect(parser, "--memory", beside=("--sampler=vllm",))
    no_effect(parser, "--address", "--replicas", "--cpus", "--gpus", needs=("--engine=ray",))
    parser.set_defaults(run=run, goes_on=lambda given: not {"--rescore", "--dry-run"} & set(given))


def run(arguments: argparse.Namespace) -> None:
    """Grade, or grade kept continuations again; write the data set, print what came out."""
    from sftknow.artifacts.mastery_data import MasteryData, check_place
    from sftknow.report.terminal import distribution_table, standing, topic_table

    if arguments.dry_run:
        _tell_time(arguments)
        return
    if arguments.out is None:
        raise RecipeError("grading needs --out DIR, the folder of the graded data set (or --dry-run)")
    arguments.out = arguments.out.expanduser().absolute()
    check_place(arguments.out)
    if arguments.rescore:
        _rescore(arguments)
    else:
        _grade(arguments)
    data = MasteryData(arguments.out)
    print(f"{topic_table(data)}\n\n{distribution_table(data)}\n\n{standing(data)}")
    if data.has_continuations:
        kept = data.manifest["continuations"]
        size, count = kept["bytes"], kept["count"]
        print(f"{count:,} continuations kept: {size / 1e6:,.2f} MB, {size / max(count, 1):.1f} bytes each")
    print(f"\ngraded data set: {arguments.out}")


def _rescore(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from sftknow.answers import Synonyms
    from sftknow.artifacts.mastery_data import MasteryData
    from sftknow.run.rescoring import recorded_rule, rescore

    old = MasteryData(arguments.rescore)
    rule = recorded_rule(old)
    if hasattr(arguments, "match"):
        rule = replace(rule, match=arguments.match)
    if arguments.case:
        rule = replace(rule, case_sensitive=arguments.case == "sensitive")
    wanted = options_of(FactsSection, arguments)
    synonyms = Synonyms.load(wanted.synonyms) if wanted.synonyms else None
    keep_texts = options_of(GradingOptions, arguments).keep_texts
    say(f"a hit is now {rule}; {'other' if synonyms else 'the same'} synonyms; graded by {old.graded_by}")
    rescore(old, arguments.out, rule=rule, synonyms=synonyms, numbers=wanted.numbers, keep_texts=keep_texts)


def _options(arguments: argparse.Namespace) -> tuple[FactsSection, GradingOptions, ModelOptions]:
    if not arguments.model or not arguments.facts:
        raise RecipeError("grading needs a model and --facts (or --rescore OLD); see: sftknow grade --help")
    ray, vllm = options_of(Cluster, arguments), options_of(VLLMOptions, arguments)
    options = options_of(GradingOptions, arguments, case_sensitive=arguments.case != "ignore", ray=ray, vllm=vllm)
    return options_of(FactsSection, arguments, source=arguments.facts), options, options_of(ModelOptions, arguments)


def _tell_time(arguments: argparse.Namespace) -> None:
    from sftknow.facts.prompts import Statements
    from sftknow.facts.topics import load_topics
    from sftknow.grading.estimate import SECONDS
    from sftknow.models.resolving import resolve_model
    from sftknow.progress import time_text
    from sftknow.run.grading import describe_facts, statement_seconds
    from sftknow.run.python import read_facts

    wanted, options, running = _options(arguments)
    topics, (facts, _) = load_topics(wanted.topics), read_facts(wanted)
    for line in describe_facts(facts, topics, options):
        say(line)
    model = ModelRef.parse(arguments.model)
    base = resolve_model(model.path, model.revision, running.dtype)
    say(f"asking {base.name} a few statements, at most {SECONDS:.0f} s")
    each = statement_seconds(base, facts, topics, options, device=running.device)
    count = sum(len(Statements(topics[fact.topic], fact.subject)) for fact in facts.facts)
    upto = "at most " if options.certainty else ""
    print(
        f"{count:,} statements × {options.samples} samples take {upto}about {time_text(count * each)}: measured just "
        f"now, {1 / each:,.2f} statements a second with this model on this machine"
    )


def _grade(arguments: argparse.Namespace) -> None:
    from sftknow.run.python import grade

    facts, options, running = _options(arguments)
    grade(arguments.model, facts, out=arguments.out, options=options, running=running, force=arguments.force, say=say)
