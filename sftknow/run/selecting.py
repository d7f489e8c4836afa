"""Grade people's own SFT data by what a model already knows, and draw from it; used by `sftknow select`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from sftknow.answers import Synonyms
from sftknow.artifacts.files import digest
from sftknow.artifacts.selections import SelectedExample, SelectResult, check_place, write_selection
from sftknow.artifacts.stages import RunDirectory
from sftknow.facts.sources import even_shares, order_of, rank_of
from sftknow.models.options import ModelOptions
from sftknow.models.resolving import resolve_model
from sftknow.parameters.outputs import refuse_within
from sftknow.records import BUCKETS, ModelRef
from sftknow.resources import cache_folder
from sftknow.run.asking import Say
from sftknow.run.sft_asking import SFTAsking
from sftknow.run.sft_data import read_data
from sftknow.selecting.options import SelectOptions
from sftknow.selecting.words import card, sentence

_DEFAULT, _MORE = (1, 2, 3), 4
"""Buckets to draw from, and the one that fills up: the paper's middle ones balance best, the lowest harms (3.4)."""


def select(
    data: str | Path,
    model: str | Path,
    *,
    out: str | Path | None = None,
    columns: str | None = None,
    config: str | None = None,
    topics: str | Path | None = None,
    synonyms: str | Path | None = None,
    options: SelectOptions | None = None,
    running: ModelOptions | None = None,
    say: Say = lambda line: print(line, file=sys.stderr, flush=True),
) -> SelectResult:
    """Tell what a model already knows of SFT data, and propose what to train it on (paper, 3.4).

    Short answers are sampled: of prompt and completion, or messages, in two forms of asking, plainly (in the model's
    chat template where it has one) and after solved examples of the same data. A base model has not seen the format
    that SFT is to teach, so that asked plainly it may fail what it knows; after examples the format plays no part. The
    form in which the model is right more often over all examples is the one that counts, the other is told beside it.
    Facts are graded by the statements of their relation, as the paper does. Long answers cannot be matched; they are
    scored by the mean log-probability of their tokens, and cut into fifths.

    Args:
        data: a JSONL, JSON, CSV, TSV or Parquet file or a folder of them, a data set on the Hub (of both, what is not
            dev or test), or facts as `load_facts` takes them.
        model: the model before SFT: a folder, an adapter, ``org/name[@revision]``, or ``lab``.
        out: where the data set goes: configurations ``draw`` (for `SFTTrainer`) and ``buckets``; None writes nothing.
        columns: which column is what, such as ``prompt=question,completion=answer``; of facts as `load_facts` has it.
        config: of a data set with several configurations, each a folder of its files, the one to read; None for all.
        topics: of facts, the person's own topics file.
        synonyms: names that count as correct, in place of the paper's.
        options: how to ask, what to draw.
        running: device and dtype.
        say: gets a line now and then.

    Raises:
        FactsError: the data cannot be used; names file and row.
        ModelError, CheckpointError, HubError: the model cannot be loaded or asked.
        RunError: ``out`` holds something else, or another process does the same.
    """
    options, running = options or SelectOptions(), running or ModelOptions()
    data, model, out = str(data), str(model), Path(out).expanduser() if out else None
    if out is not None:
        check_place(out)
    given = ModelRef.parse(model)
    asked = resolve_model(given.path, given.revision, running.dtype)
    if out is not None:
        refuse_within(out, [Path(asked.ref.path), *([Path(data)] if Path(data).is_dir() else [])])
    read = read_data(data, columns, topics, Synonyms.load(synonyms), options, config)
    work = cache_folder() / "selections" / digest([asked.sha256, asked.ref.dtype, read.sha256])[:16]
    with RunDirectory(work):
        asking = SFTAsking(asked, model, read, options, running, work, say)
        result = _drawn(asking.result(), options)
    if out is not None:
        result = replace(result, out=str(out))
        cells = {example.id: example.cells for example in read.examples}
        manifest = {
            "model": {"path": asked.name, "sha256": asked.sha256},
            "data": {"path": read.name, "sha256": read.sha256},
            "options": options.settings(),
        }
        dropped = write_selection(out, result, [cells[e.id] for e in result.examples], card(result), manifest)
        notes = tuple(f"column left out: {column}" for column in dropped)
        result = replace(result, notes=(*result.notes, *notes))
    return result


def _drawn(result: SelectResult, options: SelectOptions) -> SelectResult:
    """The result with its draw: as many of each bucket as there are, balanced over the relations within."""
    pools: dict[int, list[SelectedExample]] = {bucket: [] for bucket in BUCKETS}
    for example in result.examples:
        pools[example.bucket].append(example)
    wanted = sorted(set(options.buckets or _DEFAULT))
    shares = even_shares({bucket: len(pools[bucket]) for bucket in wanted}, options.size)
    if not options.buckets:
        shares[_MORE] = min(len(pools[_MORE]), options.size - sum(shares.values()))
    chosen: set[str] = set()
    for bucket, share in shares.items():
        pool = pools[bucket]
        order = order_of([example.topic for example in pool], [rank_of(e.id, options.seed) for e in pool])
        chosen |= {pool[i].id for i in order[:share]}
    examples = tuple(replace(example, drawn=example.id in chosen) for example in result.examples)
    return replace(result, examples=examples, sentence=sentence(result.model, examples, options.size))
