"""Which graded data set a model is scored on, and its questions.

The data set is, in this order: what was asked for; what the model says of itself, in the ``sftknow.json`` beside its
weights or under ``datasets:`` in its model card; the caller's default (a recipe's). Model and data set may each be a
local folder or a repository on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.answers import normalize
from sftknow.artifacts.files import file_sha256
from sftknow.artifacts.manifests import MANIFEST, dataset_of_model, read_manifest
from sftknow.artifacts.mastery_data import KIND, SCHEMA, MasteryData, bucket_file
from sftknow.errors import HubError, MasteryDataError, RunError, first_line
from sftknow.models.hub_files import Repo, open_repo
from sftknow.models.notes import ModelNotes
from sftknow.models.pull import origin
from sftknow.records import BUCKETS, GradedFact, ModelRef, Split

WAY_OUT = "pass --metadata mastery_dataset=FOLDER or mastery_dataset=org/name@revision"
_DATASET_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A graded data set, wherever it lies, and how it was found."""

    data: MasteryData
    """Its local folder; of a repository only the files that were read lie there."""
    repo: Repo | None = None
    """The repository and its commit; None for a local folder."""
    named_by: str = "asked for"
    """Who named it, in words."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers has to know: other candidates, another grader."""

    @property
    def name(self) -> str:
        """The folder, or ``org/name@commit``; `open_dataset` finds the same content by it."""
        if self.repo is None:
            return str(self.data.folder)
        return f"{self.repo.repo_id}@{self.repo.commit}" if self.repo.commit else self.repo.repo_id

    def read(self, split: Split, bucket: int) -> list[GradedFact]:
        """The facts of one bucket in file order, after a comparison with the hash in the data set's manifest.

        Raises:
            MasteryDataError: the file is missing or damaged, is another one than the manifest says, has other columns,
                or holds a question without text or without an answer.
            HubError: the Hub refused or could not be reached.
        """
        path = self._file(split, bucket)
        _check_rows(path)
        return self.data.bucket(split, bucket)

    def fact_ids(self, split: Split) -> set[str]:
        """Ids of all facts of a split; raises as `read` does."""
        found: set[str] = set()
        for bucket in BUCKETS:
            found.update(pq.read_table(self._file(split, bucket), columns=["fact_id"])["fact_id"].to_pylist())
        return found

    def _file(self, split: Split, bucket: int) -> Path:
        name = bucket_file(split, bucket)
        path = self.data.folder / name
        if self.repo is not None and self.repo.file(name) is None:
            raise MasteryDataError(f"{self.name} has no {name}: the data set is not whole")
        if not path.is_file():
            raise MasteryDataError(f"{path} is missing: the data set is not whole; grade or pull it again")
        expected = self.data.manifest.get("sha256", {}).get(name)
        if expected and file_sha256(path) != expected:
            raise MasteryDataError(f"{path} is not the file that its sftknow.json names; grade or pull it again")
        return path


def find_dataset(
    asked: str | None, models: Sequence[ModelNotes], *, default: str | None = None, way_out: str = WAY_OUT
) -> Questions:
    """The data set that was asked for, else the one that the model names, else the default.

    Args:
        asked: a folder, or ``org/name`` or ``org/name@revision`` on the Hub.
        models: the notes of the model that is scored; where it is an adapter with its base, the adapter's first.
        default: as `asked`; of a recipe.
        way_out: what a message tells the user to pass.

    Raises:
        MasteryDataError: nothing names a data set, or what is named is not there or not whole.
        HubError: the Hub refused or could not be reached.
    """
    if asked:
        found = open_dataset(asked)
    else:
        named = next((named for model in models if (named := _named_by(model, way_out)) is not None), None)
        if named is None and not default:
            which = f"the model {models[0].ref} names no graded data set" if models else "no graded data set is named"
            raise MasteryDataError(f"{which}; {way_out}")
        found = named or replace(open_dataset(str(default)), named_by="the recipe's default")
    grader = _another_grader(found.data, models)
    if grader:
        found = replace(found, notes=(*found.notes, grader))
    return found


def open_dataset(name: str) -> Questions:
    """A graded data set by folder or Hub id (``org/name`` or ``org/name@revision``).

    Raises:
        MasteryDataError: it is not there, not whole, or something else.
        HubError: the Hub refused or could not be reached.
    """
    ref = ModelRef.parse(name)
    folder = Path(ref.path).expanduser()
    if folder.is_dir() or not _DATASET_ID.fullmatch(ref.path):
        return Questions(data=_local(folder))
    return _published(ref)


def _published(ref: ModelRef) -> Questions:
    repo = open_repo(ref.path, ref.revision, "dataset")
    manifest = repo.file(MANIFEST)
    if manifest is None:
        raise MasteryDataError(
            f"there is no folder {ref} here, and {ref.path} is not in the Hub's cache (HF_HUB_OFFLINE is set)"
            if repo.offline
            else f"{ref} on the Hub has no sftknow.json: it is no graded data set, or its upload did not finish"
        )
    return Questions(data=_local(manifest.parent), repo=repo)


def _named_by(model: ModelNotes, way_out: str) -> Questions | None:
    """The data set that a model names; None where it names none."""
    named = dataset_of_model(model.folder) if model.folder else None
    if named is None:
        return _named_by_card(model)
    place, revision = named
    if not model.local or origin(model.ref.path):
        # Somebody else wrote this: it may name a data set of the Hub, and nothing of this machine.
        if "repo" not in model.manifest["mastery_dataset"] or not _DATASET_ID.fullmatch(place):
            return _named_by_card(model)
        found = _published(ModelRef(path=place, revision=revision))
        return _named(model, found)
    if Path(place).is_absolute() and not Path(place).is_dir():
        raise MasteryDataError(
            f"the model {model.ref} names the graded data set {place}, which is not there; {way_out}"
        )
    return _named(model, open_dataset(f"{place}@{revision}" if revision else place))


def _named(model: ModelNotes, found: Questions) -> Questions:
    known = (model.manifest.get("mastery_dataset") or {}).get("fingerprint")
    notes: tuple[str, ...] = ()
    if known and known != found.data.fingerprint:
        notes = (f"the content of {found.name} is no longer what it was when the model {model.ref} was made",)
    return replace(found, named_by=f"named by the sftknow.json of {model.ref}", notes=notes)


def _named_by_card(model: ModelNotes) -> Questions | None:
    """The first graded data set under ``datasets:`` of a model card; entries of other kinds are passed over."""
    found: list[Questions] = []
    for name in model.card_datasets:
        local = Path(model.ref.path) / name if model.local else None
        if local is not None and _is_mastery_data(local):
            found.append(Questions(data=_local(local)))
        elif _DATASET_ID.fullmatch(ModelRef.parse(name).path):
            found += _graded_on_hub(name)
    if not found:
        return None
    first, *others = found
    notes: tuple[str, ...] = ()
    if others:
        rest = ", ".join(other.name for other in others)
        notes = (f"the card of {model.ref} names {len(found)} graded data sets; the first is taken, not {rest}",)
    return replace(first, named_by=f"named by the model card of {model.ref}", notes=notes)


def _graded_on_hub(name: str) -> list[Questions]:
    """The data set of that name where it is a graded one; a card lists others too, also some that are not there."""
    ref = ModelRef.parse(name)
    try:
        repo = open_repo(ref.path, ref.revision, "dataset")
        if repo.file(MANIFEST) is None:
            return []
    except HubError as error:
        if error.reason in ("missing", "gated"):
            return []
        raise
    try:
        return [open_dataset(name)]
    except (MasteryDataError, RunError):
        return []


def _is_mastery_data(folder: Path) -> bool:
    try:
        return folder.is_dir() and read_manifest(folder, KIND) is not None
    except RunError:
        return False


def _local(folder: Path) -> MasteryData:
    try:
        return MasteryData(folder)
    except RunError as error:
        raise MasteryDataError(str(error)) from None


def _another_grader(data: MasteryData, models: Sequence[ModelNotes]) -> str | None:
    """A note where the data set was graded by another model than the base of the model that is scored."""
    try:
        base = next((base for model in models if (base := (model.manifest.get("base") or {}).get("path"))), None)
    except HubError as error:
        # The data set is known all the same, and lm-eval may have the model from a cache.
        return f"whether the model's own base graded the data set cannot be told ({error})"
    if base is None or _same_model(str(base), data.graded_by):
        return None
    return f"the data set was graded by {data.graded_by}, and the model's base is {base}"


def _same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: revisions apart, and folders by their last part."""
    one, other = one.partition("@")[0], other.partition("@")[0]
    folders = Path(one).is_absolute() or Path(other).is_absolute()
    return one == other or (folders and Path(one).name == Path(other).name)


def _check_rows(path: Path) -> None:
    """Refuse a bucket whose columns or rows the tasks cannot use, naming the row."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise MasteryDataError(
            f"{path} cannot be read as Parquet ({first_line(error)}); grade or pull it again"
        ) from None
    absent = [name for name in SCHEMA.names if name not in table.column_names]
    if absent:
        raise MasteryDataError(
            f"{path} lacks the columns {', '.join(absent)} (it has {', '.join(table.column_names)}): it is no graded "
            "data set; grade the facts with `sftknow grade`"
        )
    try:
        table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise MasteryDataError(f"{path} has columns of another kind ({first_line(error)}); grade it again") from None
    columns = table.select(["fact_id", "question", "object", "aliases"]).to_pylist()
    for number, row in enumerate(columns, start=1):
        answers = [row["object"], *(row["aliases"] or ())]
        if row["aliases"] is None or any(not isinstance(text, str) or not normalize(text) for text in answers):
            raise MasteryDataError(
                f"{path}, row {number} ({row['fact_id']}): an answer is missing or empty, so nothing could be correct; "
                "mend the facts and grade them again"
            )
        if not row["question"] or not row["question"].strip():
            raise MasteryDataError(f"{path}, row {number} ({row['fact_id']}) has no question; grade the facts again")
