"""`sftknow run`: a whole experiment."""

from __future__ import annotations

import argparse
import json
import shlex
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from sftknow.cli.effects import no_effect
from sftknow.cli.options import Commands, add_options, add_settings, command, say
from sftknow.cluster import Cluster
from sftknow.grading.options import GradingOptions
from sftknow.recipes.schema import FactsSection


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "run",
        "run an experiment from facts to report; a second start goes on where the first one stopped",
        "sftknow run lab --open\n"
        "  sftknow run lab --model my-model --facts facts.jsonl --set grid.sizes=[60,240] --out runs/mine\n"
        "  sftknow run any-model --model org/name --facts facts.jsonl --dry-run",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe that ships (`lab`, …), or a YAML file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/<name of the recipe>)")
    parser.add_argument("--model", metavar="MODEL", help="short for --set model.path=…, with @revision")
    parser.add_argument("--facts", metavar="SOURCE", help="short for --set facts.source=…")
    add_options(parser, FactsSection, "topics", "synonyms", otherwise="the recipe's")
    add_settings(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print stages, samples, steps, disk and an estimate of time; do nothing"
    )
    usual = "the recipe's"
    add_options(parser, GradingOptions, "engine", otherwise=usual)
    cores = {"cpus": "cpus_per_replica", "gpus": "gpus_per_replica"}
    add_options(parser, Cluster, "address", "replicas", otherwise=usual, **cores)
    parser.add_argument("--open", action="store_true", help="open the report in a browser at the end")
    no_effect(parser, "--open", beside=("--dry-run",))
    no_effect(parser, "--address", "--replicas", "--cpus", "--gpus", beside=("--engine=local",))
    parser.set_defaults(run=run, goes_on=lambda given: "--dry-run" not in given)


def run(arguments: argparse.Namespace) -> None:
    """Load the recipe, run it, print what was found."""
    from sftknow.recipes.load import load_recipe

    settings = list(arguments.settings)
    if arguments.model:
        path, at, revision = arguments.model.rpartition("@")
        if at and not Path(arguments.model).exists():
            settings += [f"model.path={path}", f"model.revision='{revision}'"]
        else:
            settings.append(f"model.path={arguments.model}")
    if arguments.facts:
        settings.append(f"facts.source={arguments.facts}")
    files = {key: getattr(arguments, key) for key in ("topics", "synonyms") if hasattr(arguments, key)}
    settings += [f"facts.{key}={json.dumps(file, ensure_ascii=False)}" for key, file in files.items()]
    settings += _ray_settings(arguments)
    recipe = load_recipe(arguments.recipe, settings)
    out = arguments.out or Path("runs") / recipe.name
    if arguments.dry_run:
        from sftknow.run.plan_text import plan_text
        from sftknow.run.planning import plan_run

        print(plan_text(plan_run(recipe, out, say=say)))
        return

    from sftknow.artifacts.stages import RunDirectory
    from sftknow.report.terminal import print_summary
    from sftknow.run.experiment import Experiment

    started = time.monotonic()
    with RunDirectory(out) as directory:
        page = Experiment(recipe, directory, say=say).run()
    print_summary(out)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"\nreport: {page}   ({minutes} min {seconds} s)")
    for line in what_next(out):
        print(line)
    if arguments.open:
        webbrowser.open(page.resolve().as_uri())


def what_next(run: Path) -> Iterator[str]:
    """Where the model lies that the run recommends, and how to score it again; the base where it recommends none."""
    from sftknow.artifacts.files import read_json
    from sftknow.checkpoints.deltas import is_delta

    choice = read_json(run / "choice.json") if (run / "choice.json").is_file() else {}
    name = str(choice.get("model") or "base")
    cell, _, level = name.partition("@")
    folder = run / "restored" / cell / level if level else run / "models" / cell
    if is_delta(folder):
        yield f"write the recommended model whole: sftknow materialize {shlex.quote(str(folder))} --out {name}"
        folder = Path(name)
    elif name != "base":
        yield f"recommended model: {folder}"
    yield f"score it again: lm_eval --model hf --model_args pretrained={shlex.quote(str(folder))} --tasks cbqa_mastery"


def _ray_settings(arguments: argparse.Namespace) -> list[str]:
    """The options about Ray as settings: they hold for the grading and for the grid."""
    keys = {"engine": "engine"} | {field.name: f"ray.{field.name}" for field in fields(Cluster)}
    given = {key: getattr(arguments, name) for name, key in keys.items() if hasattr(arguments, name)}
    return [f"{part}.{key}={json.dumps(value)}" for key, value in given.items() for part in ("grading", "grid")]
