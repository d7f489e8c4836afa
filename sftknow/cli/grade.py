"""`sftknow grade`: how well does a model know each fact?"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from sftknow.cli.options import Commands, add_dtype, at_least_zero, command, positive, say


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
        help="`lab`, `entity-questions` (downloads the official data), its folder or .zip, JSONL/CSV/Parquet, Hub id",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the graded data set")
    parser.add_argument("--limit", type=positive, metavar="N", help="at most N training facts, balanced over topics")
    parser.add_argument("--samples", type=positive, default=10, metavar="N", help="for each statement (default: 10)")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="default: 0.7")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--topics", metavar="FILE", help="topics file, merged over the paper's 24 topics")
    parser.add_argument("--synonyms", metavar="FILE", help="synonyms file, merged over the paper's Table 12")
    parser.add_argument("--match", choices=("contains", "word", "exact"), help="what is a hit (default: contains)")
    parser.add_argument("--case", choices=("sensitive", "ignore"), help="of answers (default: sensitive)")
    parser.add_argument("--keep-texts", action="store_true", help="store every continuation with the data set")
    parser.add_argument("--force", action="store_true", help="grade again, though the same grading is there")
    parser.add_argument(
        "--rescore",
        type=Path,
        metavar="OLD",
        help="grade the kept texts of OLD again by --match, --case or --synonyms, without the model",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 …")
    add_dtype(parser)
    parser.add_argument(
        "--sampler", default="transformers", metavar="NAME", help="transformers (default), vllm, or one of a plug-in"
    )
    parser.add_argument("--tensor-parallel", type=positive, default=1, metavar="N", help="vLLM: GPUs for one model")
    parser.add_argument("--data-parallel", type=positive, default=1, metavar="N", help="vLLM: copies of the model")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="this process, or a Ray cluster")
    parser.add_argument("--address", metavar="HOST:PORT", help="Ray: the cluster (default: this machine's; or `local`)")
    parser.add_argument("--replicas", type=positive, metavar="N", help="Ray: most workers at once (default: what fits)")
    parser.add_argument("--cpus", type=at_least_zero, default=1.0, metavar="X", help="Ray: for a worker (default: 1)")
    parser.add_argument("--gpus", type=at_least_zero, metavar="X", help="Ray: for a worker (default: 1 if any)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Grade, or grade kept continuations again; write the data set, print what came out."""
    from sftknow.artifacts.mastery_data import MasteryData, check_place
    from sftknow.errors import RecipeError
    from sftknow.report.terminal import distribution_table, standing, topic_table

    arguments.out = arguments.out.expanduser().absolute()
    check_place(arguments.out)
    if arguments.rescore:
        given = [name for name in ("facts", "topics", "limit") if getattr(arguments, name)]
        given = [f"--{name}" for name in given] + ([arguments.model] if arguments.model else [])
        if given:
            raise RecipeError(f"--rescore grades the texts that are there: {', '.join(given)} cannot go with it")
        _rescore(arguments)
    elif not arguments.model or not arguments.facts:
        raise RecipeError("grading needs a model and --facts (or --rescore OLD); see: sftknow grade --help")
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
    if arguments.match:
        rule = replace(rule, match=arguments.match)
    if arguments.case:
        rule = replace(rule, case_sensitive=arguments.case == "sensitive")
    synonyms = Synonyms.load(Path(arguments.synonyms)) if arguments.synonyms else None
    say(f"a hit is now {rule}; {'other' if synonyms else 'the same'} synonyms; graded by {old.graded_by}")
    rescore(old, arguments.out, rule=rule, synonyms=synonyms, keep_texts=arguments.keep_texts)


def _grade(arguments: argparse.Namespace) -> None:
    from pydantic import ValidationError

    from sftknow.answers import Synonyms
    from sftknow.errors import RecipeError
    from sftknow.facts.sources import load_facts
    from sftknow.facts.topics import load_topics
    from sftknow.models.resolving import resolve_base
    from sftknow.recipes.schema import GradingSection, RaySection, VLLMSection
    from sftknow.records import ModelRef
    from sftknow.run.grading import describe_facts, grade_dataset, is_graded

    try:
        section = GradingSection(
            samples=arguments.samples,
            temperature=arguments.temperature,
            seed=arguments.seed,
            keep_texts=arguments.keep_texts,
            match=arguments.match or "contains",
            case_sensitive=arguments.case != "ignore",
            sampler=arguments.sampler,
            engine=arguments.engine,
            vllm=VLLMSection(tensor_parallel=arguments.tensor_parallel, data_parallel=arguments.data_parallel),
            ray=RaySection(
                address=arguments.address,
                replicas=arguments.replicas,
                cpus_per_replica=arguments.cpus,
                gpus_per_replica=arguments.gpus,
            ),
        )
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("sampler",):
            raise RecipeError(f"--sampler should be {error.errors()[0]['msg']}, not {arguments.sampler!r}") from None
        raise RecipeError(f"--temperature should be greater than 0, not {arguments.temperature}") from None
    topics = load_topics(Path(arguments.topics) if arguments.topics else None)
    synonyms = Synonyms.load(Path(arguments.synonyms) if arguments.synonyms else None)
    facts = load_facts(arguments.facts, topics=topics, synonyms=synonyms, limit=arguments.limit, seed=arguments.seed)
    for line in describe_facts(facts, topics, section):
        say(line)
    model = ModelRef.parse(arguments.model)
    base = resolve_base(model.path, model.revision, arguments.dtype)
    if not arguments.force and is_graded(arguments.out, base, facts, topics, section):
        say(f"{arguments.out} holds this very grading by {base.name}; nothing to do (--force grades again)")
        return
    say(f"asking {base.name}")
    work = arguments.out.with_name(f".{arguments.out.name}.grading")
    grade_dataset(base, facts, topics, synonyms, section, work=work, out=arguments.out, device=arguments.device)
    shutil.rmtree(work, ignore_errors=True)
