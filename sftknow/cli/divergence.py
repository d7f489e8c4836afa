"""`sftknow divergence`: how far fine-tuning moved the first predicted token."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sftknow.cli.options import (
    Commands,
    add_device,
    add_dtype,
    add_mastery,
    add_model,
    command,
    positive,
    resolve_dataset,
)

if TYPE_CHECKING:
    from sftknow.records import TokenDivergence


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
    add_mastery(parser)
    parser.add_argument("--k", type=positive, default=10, metavar="N", help="largest logits compared (default: 10)")
    parser.add_argument(
        "--window", type=positive, default=3, metavar="N", help="the answer starts within N tokens (default: 3)"
    )
    for name, whom in (("base", "the base"), ("tuned", "a fine-tuned model")):
        parser.add_argument(
            f"--{name}-prompt",
            choices=("statement", "question"),
            default="statement",
            help=f"what {whom} is shown: a statement to complete (default, the paper's reading) or the question",
        )
    parser.add_argument(
        "--buckets",
        type=_buckets,
        default=(0, 1, 2, 3, 4),
        metavar="LIST",
        help="test buckets, such as 4; the highest is the headline (default: all five)",
    )
    parser.add_argument(
        "--any-base", action="store_true", help="measure also where the facts were graded by another model than BASE"
    )
    parser.add_argument("--topics", metavar="FILE", help="topics file, merged over the paper's 24 topics")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write divergence.json, examples.parquet and skipped.parquet there"
    )
    add_device(parser)
    add_dtype(parser, "float32, since rounded logits diverge by themselves")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    from sftknow.records import ModelRef
    from sftknow.run.token_pairs import DivergenceOptions, diverge_pairs

    options = DivergenceOptions(
        k=arguments.k,
        window=arguments.window,
        base_prompt=arguments.base_prompt,
        tuned_prompt=arguments.tuned_prompt,
        buckets=arguments.buckets,
        topics_file=Path(arguments.topics) if arguments.topics else None,
        batch_size=arguments.batch_size,
        device=arguments.device,
        any_base=arguments.any_base,
    )
    measured = diverge_pairs(
        ModelRef.parse(arguments.base, dtype=arguments.dtype),
        [ModelRef.parse(name, dtype=arguments.dtype) for name in arguments.tuned],
        resolve_dataset(arguments.mastery),
        options,
        out=arguments.out,
    )
    for name, summary in zip(arguments.tuned, measured, strict=True):
        if len(arguments.tuned) > 1:
            print(f"\n{name}")
        _say(summary)


def _buckets(text: str) -> tuple[int, ...]:
    """An argparse type: numbers of mastery buckets."""
    try:
        buckets = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        buckets = ()
    if not buckets or not set(buckets) <= set(range(5)):
        raise argparse.ArgumentTypeError(f"{text} names no buckets; give numbers from 0 to 4, such as 4 or 0,2,4")
    return buckets


def _say(summary: TokenDivergence) -> None:
    print(
        f"KL(fine-tuned ‖ base), top {summary.k} re-normalised: {summary.mean:.4f} nats (95 % interval "
        f"{summary.low:.4f} to {summary.high:.4f}) over {summary.count} test facts of bucket {summary.bucket}"
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
