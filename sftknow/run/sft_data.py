"""Read people's own SFT data: texts, messages or facts, from a file, a folder or the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftknow.answers import Synonyms
from sftknow.artifacts.files import digest
from sftknow.errors import FactsError, RecipeError
from sftknow.facts.dialects import READERS, read_rows
from sftknow.facts.sources import SOURCES, load_facts, locate, rank_of, tables
from sftknow.facts.tabular import split_in_name
from sftknow.facts.topics import Topic, load_topics
from sftknow.prompts import question_prompt
from sftknow.records import Split
from sftknow.selecting.examples import LAYOUTS, Example, RowError, from_fact, from_row
from sftknow.selecting.options import SelectOptions


@dataclass(frozen=True, kw_only=True)
class SFTData:
    """SFT data as they were read."""

    name: str
    examples: list[Example]
    left_out: dict[str, int]
    notes: tuple[str, ...]
    topics: Mapping[str, Topic]
    """Of facts."""
    sha256: str


def read_data(
    data: str,
    columns: str | None,
    topics: str | Path | None,
    synonyms: Synonyms,
    options: SelectOptions,
    config: str | None = None,
) -> SFTData:
    """Read them; see `sftknow.run.selecting.select` for the arguments.

    Raises:
        FactsError: the data cannot be used; names file and row.
        RecipeError: an option that is for facts, and these are none.
        HubError: the Hub refused or could not be reached.
    """
    renamed = _renamed(columns)
    if config is not None and (renamed is None or data in SOURCES):
        raise RecipeError("--config does nothing for facts; leave it out")
    if renamed is None or (not renamed and _are_facts(data)):
        known = load_topics(topics)
        found = load_facts(data, topics=known, synonyms=synonyms, columns=columns, limit=options.limit)
        facts = [fact for fact in found.facts if fact.split == "train"]
        if not facts:
            raise FactsError(f"{data} has no training facts; give facts without a split, or of the split train")
        left = {f"{split} facts": n for split, n in found.counts().items() if n and split != "train"}
        return SFTData(
            name=found.source,
            examples=[from_fact(fact, question_prompt(fact.question), f" {fact.object}") for fact in facts],
            left_out=left | dict(found.removed),
            notes=found.notes,
            topics=known,
            sha256=digest([found.sha256, digest(known)]),
        )
    if topics is not None:
        raise RecipeError("--topics does nothing here: the data are no facts; leave it out")
    place, name = locate(data, "data", *map(repr, SOURCES))
    notes: list[str] = []
    examples: list[Example] = []
    left_out: dict[str, int] = {}
    files, more = _of_config(place, tables(place), config)
    notes += more
    for file, split in files:
        if split not in (None, "train"):
            left_out[f"{split} split"] = left_out.get(f"{split} split", 0) + sum(1 for _ in _rows(file, notes))
            continue
        for number, row in _rows(file, notes):
            cells = {renamed.get(column, column): cell for column, cell in row.items()}
            try:
                example = from_row(cells, f"{len(examples) + sum(left_out.values()) + 1}")
            except RowError as error:
                raise FactsError(
                    f"{file}, row {number}: {error}; --columns prompt=COLUMN,completion=COLUMN names others"
                ) from None
            if example is None:
                left_out["an empty answer"] = left_out.get("an empty answer", 0) + 1
            else:
                aliases = synonyms.aliases(example.answer)
                examples.append(replace(example, aliases=aliases) if aliases else example)
    if not examples:
        raise FactsError(f"there is not a single example to train on in {data}")
    if options.limit is not None and options.limit < len(examples):
        order = sorted(range(len(examples)), key=lambda i: rank_of(examples[i].id, options.seed))[: options.limit]
        left_out["beyond the limit"] = len(examples) - options.limit
        examples = [examples[i] for i in sorted(order)]
    content = [[e.id, e.text, e.messages, e.completion, e.aliases] for e in examples]
    return SFTData(
        name=name,
        examples=examples,
        left_out=left_out,
        notes=tuple(dict.fromkeys(notes)),
        topics={},
        sha256=digest(content),
    )


def _of_config(
    place: Path, files: list[tuple[Path, Split | None]], config: str | None
) -> tuple[list[tuple[Path, Split | None]], list[str]]:
    """The files of one configuration, which is a folder of them, or all; and a note where all are of several.

    Raises:
        FactsError: there is no such one; names those that there are.
    """
    folders = {file: file.relative_to(place).parts[:-1] if place.is_dir() else () for file, _ in files}
    there = {parts[0] if parts and split_in_name(Path(parts[0])) is None else "" for parts in folders.values()}
    names = sorted(there - {"", "data"})
    if config is None:
        several = len(there) > 1
        joined = ", ".join(names)
        return files, [f"read together: {joined}; --config {names[0]} reads one of them"] if several and names else []
    found = [(file, split) for file, split in files if folders[file][:1] == (config,)]
    if not found:
        known = f"there are {', '.join(names)}" if names else "it has none; leave --config out"
        raise FactsError(f"{place} has no configuration {config!r}: {known}")
    return found, []


def _renamed(columns: str | None) -> dict[str, str] | None:
    """Our name by the data's, of ``--columns``; None where it speaks of facts."""
    ours = {name for layout in LAYOUTS for name in layout}
    pairs = [[side.strip() for side in part.partition("=")[::2]] for part in (columns or "").split(",") if part]
    return {theirs: our for our, theirs in pairs} if all(our in ours and theirs for our, theirs in pairs) else None


def _are_facts(data: str) -> bool:
    """Whether a source is one of facts: by its name, its layout, or its first row's columns."""
    if data in SOURCES and not Path(data).exists():
        return True
    place, _ = locate(data, "data", *map(repr, SOURCES))
    if place.suffix.lower() == ".zip":
        return True
    try:
        files = tables(place)
    except FactsError:
        return place.is_dir()  # laid out like EntityQuestions, or nothing: load_facts says which
    first = next((row for file, _ in files for _, row in _rows(file, [])), {})
    return {"object", "subject"} <= {name.lower() for name in first}


def _rows(file: Path, notes: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if file.suffix.lower() not in READERS:
        raise FactsError(f"{file} is not a {', '.join(READERS)} file")

    def is_header(names: list[str]) -> bool:
        return any(set(layout) <= set(names) for layout in LAYOUTS)

    return read_rows(file, is_header, notes.append)
