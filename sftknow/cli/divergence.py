"""`sftknow divergence`: how far fine-tuning moved the first predicted token."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.options import (
    Commands,
    add_mastery,
    add_model,
    add_options,
    add_running,
    command,
    options_of,
    resolve_dataset,
)
from sftknow.divergence.options import DivergenceOptions
from sftknow.records import ModelRef, TokenDivergence


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "divergence",
        "measure how far fine-tuning moved the first predicted token (KL, in nats)",
        "sftknow divergence base tuned --mastery graded --out divergence",
    )
    add_model(parser, "base", "the pretrained model")
    parser.add_argument(
        "tuned",
        metavar="TUNED",
        nargs="+",
        help="the fine-tuned model or models: folders or org/name[@revision]; the base runs once for all",
    )
    add_mastery(parser, required=True)
    add_options(
        parser,
        DivergenceOptions,
        *("k", "window", "base_prompt", "tuned_prompt", "buckets", "any_base"),
        topics="topics_file",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write divergence.json, examples.parquet and skipped.parquet there"
    )
    add_running(parser, DivergenceOptions)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    from sftknow.run.token_pairs import diverge_pairs

    options = options_of(DivergenceOptions, arguments)
    base, *tuned = [ModelRef.parse(name, dtype=options.dtype) for name in (arguments.base, *arguments.tuned)]
    measured = diverge_pairs(base, tuned, resolve_dataset(arguments.mastery), options, out=arguments.out)
    for name, result in zip(arguments.tuned, measured, strict=True):
        if len(tuned) > 1:
            print(f"\n{name}")
        _say(result.summary)


def _say(summary: TokenDivergence) -> None:
    from sftknow.artifacts.divergence import reading_of

    reading = reading_of(summary)
    print(f"{reading[0].upper()}{reading[1:]}.")
    print(
        f"KL(fine-tuned ‖ base), top {summary.k} re-normalised: {summary.mean:.4f} nats (95 % interval "
        f"{summary.low:.4f} to {summary.high:.4f}) over {summary.count} test facts of bucket {summary.bucket}"
    )
    beside = summary.beside
    if beside is not None:
        print(
            f"fine-tuned model shown the {beside.tuned_prompt} instead: {beside.mean:.4f} nats (95 % interval "
            f"{beside.low:.4f} to {beside.high:.4f}) over {beside.count} of them"
        )
    print(
        f"whole vocabulary: {summary.full_mean:.4f} nats, reverse {summary.full_reverse_mean:.4f}; "
        f"the most likely first token changed for {summary.top_changed:.1%}"
    )
    print(
        f"answer's first token: probability {summary.base_answer_probability:.3f} in the base, "
        f"{summary.tuned_answer_probability:.3f} after; most likely for {summary.base_answer_first:.1%} and "
        f"{summary.tuned_answer_first:.1%}"
    )
    print(
        f"the {summary.k} tokens carry {summary.base_mass:.1%} in the base, {summary.tuned_mass:.1%} after; "
        f"“the”, “a”, “an”: {summary.base_dummy_mass:.1%} and {summary.tuned_dummy_mass:.1%}"
    )
    for reason, count in summary.skipped.items():
        print(f"left out: {count} ({reason})")
    if len(summary.by_bucket) > 1:
        print("\nbucket  facts    KL (95 % interval)            top changed  left out")
        for bucket, group in summary.by_bucket.items():
            interval = f"{group.mean:.4f} ({group.low:.4f} to {group.high:.4f})"
            print(f"{bucket:>6}  {group.count:>5,}    {interval:<28}  {group.top_changed:>10.1%}  {group.skipped:>8,}")
