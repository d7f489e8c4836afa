"""`sftknow divergence`: how far fine-tuning moved the first predicted token."""

from __future__ import annotations

import argparse
from pathlib import Path

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


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "divergence",
        "measure how far fine-tuning moved the first predicted token (KL, in nats)",
        "sftknow divergence base tuned --mastery graded --out divergence",
    )
    add_model(parser, "base", "the pretrained model")
    add_model(parser, "tuned", "the fine-tuned model")
    add_mastery(parser)
    parser.add_argument("--k", type=positive, default=10, metavar="N", help="largest logits compared (default: 10)")
    parser.add_argument(
        "--window", type=positive, default=3, metavar="N", help="the answer starts within N tokens (default: 3)"
    )
    parser.add_argument("--prompt", choices=("statement", "question"), default="statement", help="what is shown")
    parser.add_argument("--topics", metavar="FILE", help="topics file, merged over the paper's 24 topics")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write divergence.json and examples.parquet there")
    add_device(parser)
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    from sftknow.pipeline.token_pairs import diverge_pair
    from sftknow.records import ModelRef

    summary = diverge_pair(
        ModelRef.parse(arguments.base, dtype=arguments.dtype),
        ModelRef.parse(arguments.tuned, dtype=arguments.dtype),
        resolve_dataset(arguments.mastery),
        k=arguments.k,
        window=arguments.window,
        prompt=arguments.prompt,
        topics_file=Path(arguments.topics) if arguments.topics else None,
        batch_size=arguments.batch_size,
        device=arguments.device,
        out=arguments.out,
    )
    print(
        f"KL(fine-tuned ‖ base), top {arguments.k} re-normalised: {summary.mean:.4f} nats "
        f"(95 % interval {summary.low:.4f} to {summary.high:.4f}) over {summary.count} facts"
    )
    print(
        f"whole vocabulary: {summary.full_mean:.4f} nats, reverse {summary.full_reverse_mean:.4f}; "
        f"the most likely first token changed for {summary.top_changed:.1%}"
    )
    for reason, count in summary.skipped.items():
        print(f"left out: {count} ({reason})")
