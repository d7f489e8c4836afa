"""Where facts come from: a source with a name, such as the lab, or a folder, a file, a data set on the Hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from sftknow.answers import Synonyms, spellings
from sftknow.artifacts.files import visible_files
from sftknow.artifacts.manifests import MANIFEST
from sftknow.errors import FactsError, HubError
from sftknow.facts.entity_questions import is_entity_questions, read_entity_questions
from sftknow.facts.layouts import Layout, parse_columns
from sftknow.facts.release import OFFICIAL, Files, FolderFiles, ZipFiles, compare, official_files
from sftknow.facts.tabular import SUFFIXES, Exposure, SourceFacts, read_tables, split_in_name
from sftknow.facts.topics import Topic, load_topics
from sftknow.models.hub_files import open_repo
from sftknow.records import SPLITS, Fact, Split
from sftknow.registry import Registry
from sftknow.resources import lab_folder, quick_facts_file
from sftknow.shown import Shown

__all__ = ["SOURCES", "Exposure", "FactSet", "SourceFacts", "load_facts"]

ReadFacts = Callable[[Mapping[str, Topic], Synonyms], SourceFacts]
"""Gets the topics by relation, and the synonyms whose names become aliases beside the source's own."""

SOURCES: Registry[ReadFacts] = Registry("facts source", FactsError)
"""The sources that have a name; see docs/extending/facts-sources.md."""

T = TypeVar("T")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True, kw_only=True)
class FactSet(Shown):
    """Facts of one source, and what was left out on the way."""

    facts: tuple[Fact, ...]
    """Unique ids, in the order of the source."""
    removed: Mapping[str, int]
    """Rows left out, by reason, such as ``train: more than one answer``."""
    sha256: str
    """Hash of all the facts' fields in order (and of the exposures): the same hash is the same facts."""
    source: str
    """As it was asked for; for a data set on the Hub ``org/name@commit``."""
    exposures: Mapping[str, Exposure] | None
    """By fact id, where the source knows them (the lab)."""
    own_aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By fact id the names that the source itself accepts, synonyms apart; only facts that have any."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the source, such as columns that were not used."""
    official: bool | None = None
    """Whether this is the official EntityQuestions release, file by file; None for anything not laid out like it."""

    def headline(self) -> str:
        """How many facts, and from where."""
        parts = ", ".join(f"{count:,} {split}" for split, count in self.counts().items() if count)
        return f"{len(self.facts):,} facts from {self.source} ({parts})"

    def rows(self) -> list[dict[str, Any]]:
        """One row a fact."""
        return [dict(vars(fact)) for fact in self.facts]

    def counts(self) -> dict[Split, int]:
        """Facts of each split, empty ones included."""
        found = _by_split(self.facts)
        return {split: found.get(split, 0) for split in SPLITS}

    def of_split(self, split: Split) -> tuple[Fact, ...]:
        """The facts of one split, in order."""
        return tuple(fact for fact in self.facts if fact.split == split)


def load_facts(
    source: str | Path,
    *,
    topics: Mapping[str, Topic] | None = None,
    synonyms: Synonyms | None = None,
    limit: int | None = None,
    seed: int = 0,
    disjoint: bool = False,
    columns: str | None = None,
) -> FactSet:
    """Read facts.

    Args:
        source: a name of `SOURCES`: ``lab``; ``entity-questions``, the official release, which is downloaded once and
            compared with the hashes of its files; or one that a plug-in adds. Otherwise a folder or a .zip file laid
            out like EntityQuestions; a JSONL, JSON, CSV, TSV or Parquet file, or a folder of them; or a data set on the
            Hub, ``org/name`` or ``org/name@revision``. What exists on this machine goes first.
        topics: from `load_topics`, None for the paper's; every relation of the source must be among them.
        synonyms: whose names become aliases beside the source's own; None for the paper's.
        limit: keep at most this many training facts, and of each other split at most a quarter of it (rounded up),
            as evenly over the topics as they allow. A larger limit with the same seed keeps what a smaller one kept
            of a topic. What goes is counted in ``removed``.
        columns: which column of a table is what: ``popqa``, ``triviaqa``, ``questions``, or
            ``subject=city,object=mayor``; None for our own names (`sftknow.facts.tabular`).
        seed: decides which facts the limit keeps; without a limit it makes no difference.
        disjoint: leave out questions of the other splits that are training questions too. Where they stay, a note
            counts them (133 of the 9,555 test questions of EntityQuestions).

    Raises:
        FactsError: the source cannot be used; names the file, the row and what is wrong there.
        HubError: the Hub refused or could not be reached.
    """
    source, topics, synonyms = str(source), topics or load_topics(), synonyms or Synonyms.load()
    if limit is not None and limit < 1:
        raise FactsError(f"a limit of {limit} facts leaves nothing; give 1 or more, or no limit")
    found, name = _read(source, topics, synonyms, parse_columns(columns) if columns else None)
    read, removed = found.facts, found.removed
    if not read:
        raise FactsError(f"there is not a single fact in {source}")
    if disjoint:
        repeated = {fact.id for fact in _repeated(read)}
        removed |= {f"{s}: a training question too": n for s, n in _by_split(_repeated(read)).items()}
        read = [fact for fact in read if fact.id not in repeated]
    facts = tuple(read if limit is None else _limited(read, limit, seed))
    for split in SPLITS:
        over = sum(fact.split == split for fact in read) - sum(fact.split == split for fact in facts)
        if over:
            removed[f"{split}: beyond the limit"] = over
    kept = {fact.id: found.exposures[fact.id] for fact in facts if fact.id in found.exposures}
    return FactSet(
        facts=facts,
        removed=removed,
        sha256=_sha256(facts, kept),
        source=name,
        exposures=kept if found.exposures else None,
        own_aliases={fact.id: found.own_aliases[fact.id] for fact in facts if fact.id in found.own_aliases},
        notes=(*found.notes, *_repeated_notes(facts), *_numbers_note(facts, synonyms)),
        official=found.official,
    )


def _repeated(facts: Iterable[Fact]) -> list[Fact]:
    """The facts of the other splits whose question is asked in training, too."""
    facts = list(facts)
    asked = {fact.question for fact in facts if fact.split == "train"}
    return [fact for fact in facts if fact.split != "train" and fact.question in asked]


def _by_split(facts: Iterable[Fact]) -> dict[Split, int]:
    found = Counter(fact.split for fact in facts)
    return {split: found[split] for split in SPLITS if found[split]}


def _repeated_notes(facts: Sequence[Fact]) -> list[str]:
    every = _by_split(facts)
    found = [f"{n:,} of {every[split]:,} {split}" for split, n in _by_split(_repeated(facts)).items()]
    if not found:
        return []
    return [f"training questions too are {', '.join(found)} questions; facts.disjoint (--disjoint) leaves them out"]


@SOURCES.register("lab")
def read_lab(topics: Mapping[str, Topic], synonyms: Synonyms) -> SourceFacts:
    """The facts of the lab's small world."""
    file = lab_folder() / "facts.parquet"
    if not file.is_file():
        raise FactsError(f"the lab's facts are missing ({file}); reinstall sftknow, or run: sftknow lab pretrain")
    return read_place(file, topics, synonyms)


@SOURCES.register("quick")
def read_quick(topics: Mapping[str, Topic], synonyms: Synonyms) -> SourceFacts:
    """1,200 facts of EntityQuestions, 50 of each relation; how they were drawn: sftknow/facts/quick/README.md."""
    found = read_place(quick_facts_file(), topics, synonyms)
    return replace(found, notes=("drawn from EntityQuestions (Sciavolino et al., EMNLP 2021; MIT License)",))


@SOURCES.register(OFFICIAL)
def read_official(topics: Mapping[str, Topic], synonyms: Synonyms) -> SourceFacts:
    """The official EntityQuestions release."""
    return read_place(official_files().path, topics, synonyms)


def _numbers_note(facts: Sequence[Fact], synonyms: Synonyms) -> tuple[str, ...]:
    """How many objects are numbers or dates, whose other spellings count as wrong unless they were asked for."""
    count = sum(len(spellings(fact.object)) > 0 for fact in facts)
    if not count:
        return ()
    also = "are accepted too" if synonyms.numbers else "count as wrong; --numbers accepts them"
    return (f"{count:,} of {len(facts):,} objects are numbers or dates: other spellings (1,000 for 1000) {also}",)


def read_place(
    place: Path, topics: Mapping[str, Topic], synonyms: Synonyms, layout: Layout | None = None
) -> SourceFacts:
    """The facts of a folder or .zip file laid out like EntityQuestions, of a table, or of a folder of tables.

    Raises:
        FactsError: it cannot be used; names the file, the row and what is wrong there.
    """
    files: Files | None = None
    if place.is_dir():
        files = FolderFiles(place) if is_entity_questions(place) else None
    elif place.suffix.lower() == ".zip":
        files = ZipFiles(place)
    if files is None:
        found = read_tables(tables(place), topics=topics, synonyms=synonyms, layout=layout)
        if found.unused and not (place / MANIFEST).is_file():
            found = replace(
                found,
                notes=(
                    *found.notes,
                    f"columns not used: {', '.join(str(name) or 'one without a name' for name in found.unused)}",
                ),
            )
        return found
    if layout is not None:
        raise FactsError(f"{place} is laid out like EntityQuestions, which has no columns to name; leave --columns out")
    compared = compare(files)
    if compared.altered and isinstance(files, ZipFiles):
        raise FactsError(f"{place} is {compared}; download it again, or unpack it and give the folder as your own data")
    facts, removed = read_entity_questions(files, topics=topics, synonyms=synonyms)
    notes = (f"this is {compared}",) if compared.same else ()
    return SourceFacts(facts=facts, removed=removed, notes=notes, official=compared.official)


def _read(
    source: str, topics: Mapping[str, Topic], synonyms: Synonyms, layout: Layout | None
) -> tuple[SourceFacts, str]:
    """What a source gives, and its name for provenance."""
    place = Path(source).expanduser()
    here = bool(source) and place.exists() and source != "lab"
    # So that provenance and licences do not take a folder of that name for the source.
    name = f"./{source}" if here and source in SOURCES else source
    if not here and source in SOURCES:
        if layout is not None:
            raise FactsError(f"{source} is no table, so that it has no columns to name; leave --columns out")
        found = SOURCES.get(source)(topics, synonyms)
        unknown = next((fact for fact in found.facts if fact.topic not in topics), None)
        if unknown is not None:
            raise FactsError(
                f"{source} gives the fact {unknown.id} of the topic {unknown.topic!r}, which no topics file has; "
                "add its templates to a topics file of your own"
            )
        return found, source
    if not here:
        place, name = locate(source, "facts", *map(repr, SOURCES))
    return read_place(place, topics, synonyms, layout), name


def locate(source: str, what: str, *also: str) -> tuple[Path, str]:
    """A folder or file on this machine, or the tables of a data set on the Hub, fetched; and its name for provenance.

    Args:
        source: a place, ``org/name`` or ``org/name@revision``.
        what: is looked for, and what else may be given, for the error.

    Raises:
        FactsError: there is no such place.
        HubError: the Hub refused or could not be reached.
    """
    place = Path(source).expanduser()
    if source and place.exists():
        return place, source
    if not _HUB_ID.fullmatch(source) or Path(source).suffix in (*SUFFIXES, ".zip"):
        raise FactsError(
            f"no {what} at {source!r}: give {', '.join([*also, 'a folder'])}, a {', '.join(SUFFIXES)} or .zip file, or "
            "a Hub id org/name"
        )
    return _download(source)


def tables(place: Path) -> list[tuple[Path, Split | None]]:
    """The tables of a file or folder, each with the split that its name tells.

    Raises:
        FactsError: there is none.
    """
    if place.is_file():
        if place.suffix.lower() not in SUFFIXES:
            raise FactsError(f"{place} is not a {', '.join(SUFFIXES)} or .zip file")
        return [(place, None)]
    # A graded data set holds kept continuations beside its facts.
    graded = (place / MANIFEST).is_file()
    there = sorted(place.glob("*/bucket_*.parquet")) if graded else visible_files(place)
    files = [path for path in there if path.suffix.lower() in SUFFIXES]
    # Beside tables a JSON file is about them.
    files = [path for path in files if path.suffix.lower() != ".json"] or files
    if not files:
        raise FactsError(
            f"{place} holds neither train/P….train.json files like EntityQuestions nor {', '.join(SUFFIXES)} files"
        )
    return [(file, split_in_name(file.relative_to(place))) for file in files]


def _download(source: str) -> tuple[Path, str]:
    """The tables of a data set repository at one commit in a local folder, and ``org/name@commit``."""
    repo_id, _, revision = source.partition("@")
    try:
        repo = open_repo(repo_id, revision or None, "dataset")
        tables = [path for path in repo.sizes if Path(path).suffix in SUFFIXES]
        if not tables:
            raise FactsError(f"the data set {source} on the Hub has no {', '.join(SUFFIXES)} files")
        return repo.download(tables), f"{repo_id}@{repo.commit}"
    except HubError as error:
        if error.reason == "name":
            raise FactsError(f"{source} is neither a file or folder here nor a Hub id: {error}") from None
        if error.reason == "missing":
            text = f"{repo_id} is neither a file or folder here nor a data set on the Hub that you may read"
            raise HubError(text, repo_id=repo_id, reason=error.reason) from None
        raise


def _limited(facts: Sequence[Fact], limit: int, seed: int) -> Iterable[Fact]:
    """The facts that a limit keeps, in their order."""
    by_split: dict[Split, dict[str, list[Fact]]] = {split: {} for split in SPLITS}
    for fact in facts:
        by_split[fact.split].setdefault(fact.topic, []).append(fact)
    kept: set[str] = set()
    for split, by_topic in by_split.items():
        size = limit if split == "train" else -(-limit // 4)
        shares = even_shares({topic: len(rows) for topic, rows in by_topic.items()}, size)
        for topic, share in shares.items():
            ranked = sorted(by_topic[topic], key=lambda fact: rank_of(fact.id, seed))
            kept.update(fact.id for fact in ranked[:share])
    return (fact for fact in facts if fact.id in kept)


def balanced(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """The facts in an order of which every beginning is balanced over the relations, and within them at random."""
    order = order_of([fact.topic for fact in facts], [rank_of(fact.id, seed) for fact in facts])
    return [facts[i] for i in order]


def rank_of(identity: str, seed: int) -> bytes:
    """A hash of seed and id, so that neither the order nor the other facts decide about this one."""
    return hashlib.sha256(f"{seed}\0{identity}".encode()).digest()


def order_of(relations: Sequence[str], ranks: Sequence[bytes]) -> list[int]:
    """An order in which every beginning is balanced over the relations, and within them at random.

    Args:
        relations: of each fact.
        ranks: of each fact, such as a hash of seed and id.
    """
    turn: dict[str, int] = {}
    places = {}
    for i in sorted(range(len(ranks)), key=ranks.__getitem__):
        turn[relations[i]] = turn.get(relations[i], -1) + 1
        places[i] = (turn[relations[i]], ranks[i])
    return sorted(places, key=places.__getitem__)


def even_shares(available: Mapping[T, int], size: int) -> dict[T, int]:
    """How many to take of each topic: as evenly as possible; places that a small topic cannot fill go to the others,
    and what does not divide goes to the first topics."""
    shares = dict.fromkeys(available, 0)
    left = min(size, sum(available.values()))
    while left:
        open_topics = [topic for topic in available if shares[topic] < available[topic]]
        each = max(1, left // len(open_topics))
        for topic in open_topics:
            more = min(each, available[topic] - shares[topic], left)
            shares[topic] += more
            left -= more
    return shares


def _sha256(facts: Sequence[Fact], exposures: Mapping[str, Exposure]) -> str:
    digest = hashlib.sha256()
    for fact in facts:
        seen = exposures.get(fact.id)
        row = [fact.id, fact.topic, fact.subject, fact.object, fact.aliases, fact.question, fact.split]
        line = json.dumps([*row, astuple(seen) if seen else None], ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
