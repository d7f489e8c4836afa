"""`sftknow restore`: set the most changed parameters back to their pretrained values."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sftknow.cli.changes import add_order, pair_options
from sftknow.cli.options import Commands, add_device, add_dtype, command, resolve_dataset, say
from sftknow.errors import CheckpointError

if TYPE_CHECKING:
    from sftknow.records import RestoredCheckpoint
    from sftknow.run.checkpoint_pairs import Restoration
    from sftknow.run.choosing import Choice

_EXAMPLES = """sftknow restore base tuned --top 5% --out restored
  sftknow restore base tuned --top 1%,5%,20% --out restored                 (restored/1pct, restored/5pct, …)
  sftknow restore base tuned --plan changes/plan.json --top 5% --out restored
  sftknow restore base tuned --layer-sweep 4 --out layers                   (layers/layers-0-3, …)
  sftknow restore base tuned --top 1%,5%,20% --choose-on dev --mastery graded --out best
  sftknow restore base tuned --top 5% --patch --out five.safetensors
  sftknow restore tuned --apply-patch five.safetensors --out restored       (and restored back to tuned)"""


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "restore",
        "set the most changed share of the parameters back to the base's values, bit by bit",
        _EXAMPLES,
    )
    parser.add_argument(
        "base", metavar="BASE", help="the pretrained checkpoint: a folder, org/name[@revision], or `lab`"
    )
    parser.add_argument(
        "tuned", metavar="TUNED", nargs="?", help="the fine-tuned checkpoint; with --apply-patch give one model only"
    )
    what = parser.add_argument_group("what is restored")
    what.add_argument(
        "--top",
        metavar="SHARE",
        help="share or shares of the region in the order of --strategy, such as 5%% or 1%%,5%%",
    )
    what.add_argument("--plan", type=Path, metavar="FILE", help="a plan.json of `sftknow changes`; --top picks from it")
    what.add_argument(
        "--layer-sweep",
        metavar="N|RANGES",
        help="whole layers instead of a share: every N layers, or ranges such as 0-3,4-7, a folder each",
    )
    what.add_argument("--apply-patch", type=Path, metavar="FILE", help="what a patch says, forwards or back")
    add_order(parser)
    writing = parser.add_argument_group("how it is written")
    writing.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="one folder a share where several are given"
    )
    writing.add_argument(
        "--patch", action="store_true", help="write a sparse file of the difference instead of a model"
    )
    writing.add_argument(
        "--shard-size", metavar="SIZE", help="largest shard, such as 5GB (default: the shards of TUNED)"
    )
    writing.add_argument(
        "--no-links",
        action="store_true",
        help="never let two outputs share a file that is the same in both (by default a read-only hard link)",
    )
    choosing = parser.add_argument_group("choosing a level")
    choosing.add_argument(
        "--choose-on",
        choices=("dev", "test"),
        metavar="SPLIT",
        help="dev or test: write only the level that is best there",
    )
    choosing.add_argument("--mastery", metavar="DATA", help="the graded data set to choose by: a folder or org/name")
    add_device(parser)
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Restore and say where it is."""
    _check(arguments)
    way = next((way for option, way in _WAYS.items() if getattr(arguments, option)), _models)
    way(_asked(arguments), arguments)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is read."""
    given = [
        name
        for name, value in (
            ("--top", arguments.top),
            ("--plan", arguments.plan),
            ("--layer-sweep", arguments.layer_sweep),
            ("--apply-patch", arguments.apply_patch),
        )
        if value
    ]
    if not given:
        raise CheckpointError("say what to restore: --top 5%, --plan FILE, --layer-sweep 4 or --apply-patch FILE")
    if len(given) > 1 and given != ["--top", "--plan"]:
        raise CheckpointError(f"{' and '.join(given)} do not go together; give one of them")
    if arguments.apply_patch and arguments.tuned:
        raise CheckpointError("--apply-patch takes one model, the one to change; leave the other out")
    if not arguments.apply_patch and not arguments.tuned:
        raise CheckpointError("give both checkpoints: sftknow restore BASE TUNED …")
    if arguments.layer_sweep and arguments.layers:
        raise CheckpointError("--layer-sweep and --layers do not go together; give the ranges to --layer-sweep")
    for name in ("layer_sweep", "apply_patch", "plan"):
        if getattr(arguments, name) and arguments.choose_on:
            raise CheckpointError(f"--choose-on chooses among the shares of --top, not with --{name.replace('_', '-')}")
    for name in ("layer_sweep", "apply_patch", "choose_on"):
        if getattr(arguments, name) and arguments.patch:
            raise CheckpointError(f"--patch and --{name.replace('_', '-')} do not go together")
    if bool(arguments.choose_on) != bool(arguments.mastery):
        raise CheckpointError("--choose-on SPLIT and --mastery DATA go together")


def _asked(arguments: argparse.Namespace) -> Restoration:
    from sftknow.checkpoints.layout import parse_size
    from sftknow.run.checkpoint_pairs import Restoration, WriteOptions

    return Restoration(
        base=arguments.base,
        tuned=arguments.tuned or "",
        out=arguments.out,
        levels=arguments.top.split(",") if arguments.top else (),
        plan_file=arguments.plan,
        order=pair_options(arguments),
        write=WriteOptions(
            links=not arguments.no_links,
            shard_bytes=parse_size(arguments.shard_size) if arguments.shard_size else None,
        ),
        say=say,
    )


def _models(asked: Restoration, _: argparse.Namespace) -> None:
    _tell(asked.models())


def _layers(asked: Restoration, arguments: argparse.Namespace) -> None:
    _tell(asked.layers(arguments.layer_sweep))


def _patches(asked: Restoration, _: argparse.Namespace) -> None:
    for level, file, values in asked.patches():
        print(f"{level}: {values:,} values; patch: {file}")


def _apply_patch(asked: Restoration, arguments: argparse.Namespace) -> None:
    done = asked.patched(arguments.apply_patch)
    way = "taken back" if done.level == "0%" else f"applied ({done.level})"
    print(f"patch {way}: {done.restored:,} parameters set; model: {done.checkpoint}")


def _choose(asked: Restoration, arguments: argparse.Namespace) -> None:
    from sftknow.run.choosing import ScoringOptions, choose_level

    scoring = ScoringOptions(
        mastery=resolve_dataset(arguments.mastery),
        chosen_on=arguments.choose_on,
        dtype=arguments.dtype,
        device=arguments.device,
        batch_size=arguments.batch_size,
    )
    choice, restored = choose_level(asked, scoring)
    print("\n".join(_choice_lines(choice)))
    _tell([restored])


_WAYS = {"apply_patch": _apply_patch, "choose_on": _choose, "patch": _patches, "layer_sweep": _layers}
"""What does it, by the option that asks for it; `_models` where none does."""


def _tell(models: Iterable[RestoredCheckpoint]) -> None:
    for restored in models:
        print(f"{restored.level}: {restored.restored:,} parameters set back; restored model: {restored.checkpoint}")


def _choice_lines(choice: Choice) -> list[str]:
    """The scores as a table, and what they say."""
    splits = list(choice.accuracy)
    lines = [f"{'level':<8}" + "".join(f"{split:>10}" for split in splits)]
    for level in choice.accuracy[splits[0]]:
        scores = "".join(f"{100 * choice.accuracy[split][level]:>9.2f}%" for split in splits)
        lines.append(f"{level:<8}{scores}" + ("   chosen" if level == choice.level else ""))
    if choice.level == "0%":
        lines.append(f"no level is better on {choice.chosen_on} than the fine-tuned model as it is")
    if choice.chosen_on != "test" and "test" in splits:
        best = choice.best_on("test")
        value = choice.accuracy["test"]
        lines.append(
            f"chosen on {choice.chosen_on}: {choice.level}, which has {100 * value[choice.level]:.2f}% on test; "
            f"chosen on test itself, as in the paper: {best}, {100 * value[best]:.2f}%"
        )
    elif choice.chosen_on == "test":
        lines.append("chosen on test, as in the paper: its accuracy there is optimistic")
    return lines
