"""`sftknow grade`: how well does a model know each fact?"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from sftknow.cli.options import Commands, add_dtype, add_model, command, positive, say


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "grade",
        "grade facts by how well a model masters them, into five buckets",
        "sftknow grade my-model --facts facts.jsonl --out graded\n"
        "  sftknow grade org/model --facts EntityQuestions --limit 3000 --out graded",
    )
    add_model(parser, "model", "the base model")
    parser.add_argument(
        "--facts", required=True, metavar="SOURCE", help="`lab`, an EntityQuestions folder, JSONL/CSV/Parquet, Hub id"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the graded data set")
    parser.add_argument("--limit", type=positive, metavar="N", help="at most N training facts, balanced over topics")
    parser.add_argument("--samples", type=positive, default=10, metavar="N", help="for each statement (default: 10)")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="default: 0.7")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--topics", metavar="FILE", help="topics file, merged over the paper's 24 topics")
    parser.add_argument("--synonyms", metavar="FILE", help="synonyms file, merged over the paper's Table 12")
    parser.add_argument("--keep-texts", action="store_true", help="store every continuation")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 …")
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Grade, write the data set, print the distribution."""
    from pydantic import ValidationError

    from sftknow.answers import Synonyms
    from sftknow.errors import RecipeError
    from sftknow.facts.sources import load_facts
    from sftknow.facts.topics import load_topics
    from sftknow.pipeline.base import resolve_base
    from sftknow.pipeline.grading import grade_dataset
    from sftknow.recipes.schema import GradingSection
    from sftknow.records import ModelRef
    from sftknow.report.terminal import distribution_table
    from sftknow.storage.mastery_data import MasteryData

    try:
        section = GradingSection(
            samples=arguments.samples,
            temperature=arguments.temperature,
            seed=arguments.seed,
            keep_texts=arguments.keep_texts,
        )
    except ValidationError:
        raise RecipeError(f"--temperature should be greater than 0, not {arguments.temperature}") from None
    topics = load_topics(Path(arguments.topics) if arguments.topics else None)
    synonyms = Synonyms.load(Path(arguments.synonyms) if arguments.synonyms else None)
    facts = load_facts(arguments.facts, topics=topics, synonyms=synonyms, limit=arguments.limit, seed=arguments.seed)
    for reason, count in facts.removed.items():
        say(f"left out: {count:,} ({reason})")
    model = ModelRef.parse(arguments.model)
    base = resolve_base(model.path, model.revision, arguments.dtype)
    say(f"{len(facts.facts):,} facts from {facts.source}, asked of {base.name}")
    work = arguments.out.with_name(f".{arguments.out.name}.grading")
    grade_dataset(base, facts, topics, synonyms, section, work=work, out=arguments.out, device=arguments.device)
    if arguments.keep_texts:
        say(f"the continuations are in {work}")
    else:
        shutil.rmtree(work, ignore_errors=True)
    print(distribution_table(MasteryData(arguments.out)))
    print(f"\ngraded data set: {arguments.out}")
