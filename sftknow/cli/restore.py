"""`sftknow restore`: set the most changed parameters back to their pretrained values."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sftknow.artifacts.choice import BESIDE, FORM, ChooseBy, Measured, rule_words
from sftknow.cli.changes import ORDER, add_order
from sftknow.cli.effects import no_effect
from sftknow.cli.options import (
    Commands,
    add_options,
    add_running,
    comma_separated,
    command,
    options_of,
    resolve_dataset,
    say,
)
from sftknow.errors import CheckpointError
from sftknow.models.options import ModelOptions
from sftknow.options import Options, shown_as
from sftknow.parameters.options import PairOptions, Resources, WriteOptions
from sftknow.records import RestoredCheckpoint

if TYPE_CHECKING:
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
    add_options(what, RestoreRequest, "top", "plan", "layer_sweep", "apply_patch")
    add_order(parser)
    writing = parser.add_argument_group("how it is written")
    add_options(writing, RestoreRequest, "out", "patch")
    add_options(writing, WriteOptions, shard_size="shard_bytes")
    writing.add_argument(
        "--no-links",
        action="store_false",
        dest="links",
        help="never let two outputs share a file that is the same in both (by default a read-only hard link)",
    )
    choosing = parser.add_argument_group("choosing a level")
    add_options(choosing, RestoreRequest, "choose_on", "choose_by", "mastery")
    add_running(parser)
    no_effect(parser, *ORDER, beside=("--plan", "--apply-patch"))
    by_rank = ("--layers", "--strategy", "--seed", "--epsilon", "--arithmetic", "--compare-in")
    no_effect(parser, *by_rank, beside=("--layer-sweep",))
    no_effect(parser, "--top", "--plan", beside=("--layer-sweep", "--apply-patch"))
    no_effect(parser, "--layer-sweep", beside=("--apply-patch",))
    no_effect(parser, "--choose-on", beside=("--layer-sweep", "--apply-patch", "--plan"))
    no_effect(parser, "--patch", beside=("--layer-sweep", "--apply-patch", "--choose-on"))
    no_effect(parser, "--shard-size", "--no-links", beside=("--patch", "--apply-patch"))
    no_effect(parser, "--no-links", beside=("--choose-on",))
    no_effect(parser, "--mastery", "--choose-by", "--device", "--batch-size", "--dtype", needs=("--choose-on",))
    no_effect(parser, "--choose-on", needs=("--mastery",))
    parser.set_defaults(run=run, goes_on=lambda given: "--patch" not in given)


@dataclass(frozen=True, kw_only=True)
class RestoreRequest(Options):
    """What `sftknow restore` is asked for. Raises CheckpointError for what does not go together."""

    base: str
    tuned: str | None = None
    top: str | None = field(default=None, metadata=shown_as("A,B"))
    """Share or shares of the region in the order of --strategy, such as 5% or 1%,5%."""
    plan: Path | None = field(default=None, metadata=shown_as("FILE"))
    """A plan.json of `sftknow changes`; --top picks from it."""
    layer_sweep: str | None = field(default=None, metadata=shown_as("N|RANGES"))
    """Whole layers instead of a share: every N layers, or ranges such as 0-3,4-7, a folder each."""
    apply_patch: Path | None = field(default=None, metadata=shown_as("FILE"))
    """What a patch says, forwards or back."""
    out: Path = field(metadata=shown_as("DIR"))
    """One folder a share where several are given."""
    patch: bool = False
    """Write a sparse file of the difference instead of a model."""
    choose_on: Literal["dev", "test"] | None = None
    """Write only the level that is best on that split."""
    choose_by: ChooseBy = "both"
    """By what: acc, the answer contains the object (the paper's measure); exact, exact match; both, containment among
    the levels that do not break the answers' form (exact match or the share that end by themselves more than 2 points
    below the fine-tuned model's)."""
    mastery: str | None = field(default=None, metadata=shown_as("DATA"))
    """The graded data set to choose by: a folder or org/name."""
    order: PairOptions
    write: WriteOptions
    running: ModelOptions

    def check(self) -> None:
        if not (self.top or self.plan or self.layer_sweep or self.apply_patch):
            raise CheckpointError("say what to restore: --top 5%, --plan FILE, --layer-sweep 4 or --apply-patch FILE")
        if self.apply_patch and self.tuned:
            raise CheckpointError("--apply-patch takes one model, the one to change; leave the other out")
        if not self.apply_patch and not self.tuned:
            raise CheckpointError("give both checkpoints: sftknow restore BASE TUNED …")


def run(arguments: argparse.Namespace) -> None:
    """Restore and say where it is."""
    asked = options_of(
        RestoreRequest,
        arguments,
        order=options_of(PairOptions, arguments, resources=options_of(Resources, arguments)),
        write=options_of(WriteOptions, arguments),
        running=options_of(ModelOptions, arguments),
    )
    restore(asked)


def restore(asked: RestoreRequest) -> None:
    """Do what is asked and print what came of it."""
    from sftknow.run.checkpoint_pairs import Restoration

    restoration = Restoration(
        base=asked.base,
        tuned=asked.tuned or "",
        out=asked.out,
        levels=comma_separated(asked.top),
        plan_file=asked.plan,
        order=asked.order,
        write=asked.write,
        say=say,
    )
    if asked.apply_patch:
        done = restoration.patched(asked.apply_patch)
        way = "taken back" if done.undone else f"applied ({done.level})"
        what = f"{done.restored:,} parameters set" if done.changed else "it changes nothing"
        print(f"patch {way}: {what}; model: {done.checkpoint}")
        return
    if asked.patch:
        for level, file, values in restoration.patches():
            print(f"{level}: {values:,} values; patch: {file}")
        return
    if asked.choose_on:
        models = [_chosen(restoration, asked)]
    elif asked.layer_sweep:
        models = restoration.layers(asked.layer_sweep)
    else:
        models = restoration.models()
    for restored in models:
        print(f"{restored.level}: {restored.restored:,} parameters set back; restored model: {restored.checkpoint}")


def _chosen(restoration: Restoration, asked: RestoreRequest) -> RestoredCheckpoint:
    from sftknow.run.choosing import ScoringOptions, choose_level

    data = resolve_dataset(asked.mastery or "")
    scoring = ScoringOptions(
        mastery=data, chosen_on=asked.choose_on or "dev", choose_by=asked.choose_by, **vars(asked.running)
    )
    choice, restored = choose_level(restoration, scoring)
    print("\n".join(_choice_lines(choice)))
    return restored


def _choice_lines(choice: Choice) -> list[str]:
    """The scores as a table for each split, and what they say."""
    from sftknow.report.terminal import text_table

    def cells(found: Measured) -> list[str]:
        values = (getattr(found, name) for name in ("acc", *BESIDE))
        return ["–" if value is None else f"{100 * value:.2f}%" for value in values]

    refused, lines = choice.refused(choice.chosen_on), []
    for split, levels in choice.scores.items():
        rows = []
        for level, found in levels.items():
            here = split == choice.chosen_on
            note = "chosen" if level == choice.level else "breaks the form" if here and level in refused else ""
            rows.append([level, *cells(found), note])
        lines += [text_table([split, "contains", "whole word", "exact match", "end by themselves", ""], rows), ""]
    lines.append(f"chosen on {choice.chosen_on} by {rule_words(choice.chosen_by)}")
    if refused:
        why = "; ".join(f"{level} ({' and '.join(FORM[name] for name in names)})" for level, names in refused.items())
        verb = "not chosen, because these fall" if choice.chosen_by == "both" else "these fall"
        lines.append(f"levels that break the answers' form, {verb}: {why}")
    if choice.level == "0%":
        lines.append(f"no level is better on {choice.chosen_on} than the fine-tuned model as it is")
    if choice.chosen_on != "test" and "test" in choice.scores:
        best, test = choice.best_on("test"), choice.scores["test"]
        lines.append(
            f"chosen on {choice.chosen_on}: {choice.level}, which has {_both(test[choice.level])} on test; "
            f"chosen on test itself by containment, as in the paper: {best}, {_both(test[best])}"
        )
    elif choice.chosen_on == "test":
        lines.append("chosen on test, as in the paper: its accuracy there is optimistic")
    return lines


def _both(found: Measured) -> str:
    exact = "unknown" if found.exact_match is None else f"{100 * found.exact_match:.2f}%"
    return f"{100 * found.acc:.2f}% (exact match {exact})"
