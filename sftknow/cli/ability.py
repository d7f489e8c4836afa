"""`sftknow ability`: the paper's Table 5, fine-tuned, restored and scored on other tasks than questions."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from sftknow.cli.effects import no_effect
from sftknow.cli.general_tasks import add_data, data_folders
from sftknow.cli.options import (
    Commands,
    add_model,
    add_options,
    add_running,
    add_settings,
    comma_separated,
    command,
    options_of,
    say,
)
from sftknow.cli.sft import parse_size, training_recipe
from sftknow.evaluation.options import AbilityOptions
from sftknow.models.options import ModelOptions
from sftknow.options import Options
from sftknow.parameters.options import PairOptions
from sftknow.records import ModelRef
from sftknow.training.recipe import SFTRecipe


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "ability",
        "fine-tune on xsum or gsm8k, restore each share, score all of them (the paper's Table 5)",
        "sftknow ability org/base --tasks xsum,gsm8k --size 1920 --out table5\n"
        "  sftknow ability org/base --tasks gsm8k --data gsm8k=path/to/gsm8k --size all --top 5%,20% --out table5",
    )
    add_model(parser, "base", "the model to start from")
    parser.add_argument(
        "--tasks",
        default="xsum,gsm8k",
        metavar="A,B",
        help="of xsum, gsm8k and those that you added (default: xsum,gsm8k)",
    )
    add_data(parser)
    parser.add_argument("--size", required=True, metavar="N", help="training rows of each task, or `all`")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw and of training (default: 0)")
    levels = ",".join(PairOptions.levels)
    parser.add_argument(
        "--top",
        default=levels,
        metavar="A,B",
        help=f"shares to restore, `none` for none (default: {levels})".replace("%", "%%"),
    )
    add_options(parser, AbilityOptions, "limit", fewshot="few_shot")
    parser.add_argument("--keep", action="store_true", help="keep the restored checkpoints")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="general_ability.json goes there")
    add_settings(parser)
    add_running(parser)
    no_effect(parser, "--keep", beside=("--top=none",))
    parser.set_defaults(run=run, goes_on=lambda given: True, batch_size=ModelOptions.batch_size)


@dataclass(frozen=True, kw_only=True)
class AbilityRequest(Options):
    """What `sftknow ability` is asked for."""

    base: str
    out: Path
    keep: bool = False
    options: AbilityOptions
    recipe: SFTRecipe


def run(arguments: argparse.Namespace) -> None:
    """Do it all and print the table."""
    names, levels = [name for name in comma_separated(arguments.tasks) if name], comma_separated(arguments.top)
    options = options_of(
        AbilityOptions,
        arguments,
        tasks=tuple(names),
        data={name: str(folder) for name, folder in data_folders(arguments.data, names).items()},
        size=parse_size(arguments.size) or "all",
        levels=() if levels == ["none"] else tuple(levels),
    )
    recipe = training_recipe(arguments.settings, max_length=options.max_length)
    asked = options_of(AbilityRequest, arguments, options=options, recipe=recipe)
    measure(asked)


def measure(asked: AbilityRequest) -> None:
    """Train, restore and score, and print the table."""
    from sftknow.models.resolving import resolve_base
    from sftknow.run.general_ability import Ability, general_ability
    from sftknow.run.general_text import general_text
    from sftknow.run.training import TrainingSetup

    model, options = ModelRef.parse(asked.base), asked.options
    setup = TrainingSetup(recipe=asked.recipe)
    ability = Ability.of(options, training=setup, levels=options.levels or (), keep=asked.keep)
    path = general_ability(resolve_base(model.path, model.revision, None), ability, asked.out, say)
    print(general_text(path))
    print(f"\nall numbers: {path}")
