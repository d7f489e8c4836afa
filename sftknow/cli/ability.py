"""`sftknow ability`: the paper's Table 5, fine-tuned, restored and scored on other tasks than questions."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.changes import DEFAULT_LEVELS
from sftknow.cli.general_tasks import add_data, data_folders, general_options
from sftknow.cli.options import Commands, add_device, add_dtype, add_model, add_settings, command, positive, say


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
        help="of xsum, gsm8k and those that you added (default: both)",
    )
    add_data(parser)
    parser.add_argument("--size", required=True, metavar="N", help="training rows of each task, or `all`")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw and of training (default: 0)")
    parser.add_argument(
        "--top",
        default=DEFAULT_LEVELS,
        metavar="SHARES",
        help=f"shares to restore, `none` for none; default: {DEFAULT_LEVELS}".replace("%", "%%"),
    )
    parser.add_argument(
        "--fewshot", type=int, default=0, metavar="N", help="gsm8k: examples before each question (default: 0)"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="score only the first N rows of each task")
    parser.add_argument("--keep", action="store_true", help="keep the restored checkpoints")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="general_ability.json goes there")
    add_settings(parser)
    add_device(parser)
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Do it all and print the table."""
    from sftknow.cli.sft import parse_size, task_recipe
    from sftknow.models.resolving import resolve_base
    from sftknow.records import ModelRef
    from sftknow.run.general_ability import Ability, check_tasks, general_ability
    from sftknow.run.general_text import general_text
    from sftknow.run.training import TrainingSetup

    names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    data = data_folders(arguments.data)
    check_tasks(names, data)
    ability = Ability(
        tasks=names,
        data=data,
        size=parse_size(arguments.size),
        seed=arguments.seed,
        levels=() if arguments.top == "none" else [level.strip() for level in arguments.top.split(",")],
        training=TrainingSetup(recipe=task_recipe(arguments.settings)),
        asked=general_options(arguments),
        keep=arguments.keep,
    )
    model = ModelRef.parse(arguments.base)
    path = general_ability(resolve_base(model.path, model.revision, None), ability, arguments.out, say)
    print(general_text(path))
    print(f"\nall numbers: {path}")
