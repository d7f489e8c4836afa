"""Files that somebody else wrote: what is not as it should be is one line, never a traceback, never taken for good."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import SafetensorError, safe_open

from sftknow.artifacts.manifests import dataset_of_model, read_manifest, write_manifest
from sftknow.checkpoints.deltas import materialize, stored_weights, write_delta
from sftknow.checkpoints.index import read_header, read_index
from sftknow.errors import CheckpointError, RunError, SftknowError
from sftknow.parameters.change import analyse
from sftknow.parameters.patch import apply_patch, write_patch
from sftknow.parameters.restore import restore
from sftknow.parameters.tables import read_analysis, read_plan, write_analysis
from sftknow.untrusted import MAX_DEPTH, MAX_DIGITS, load_json, markdown_text, parse_json, refuse_outside, shaped
from tests.damage import damaged_bytes, damaged_json, damaged_safetensors
from tests.parameters.checkpoint_pairs import stored, write_checkpoint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "damaged"),
        (b"", "damaged"),
        (b"\xff\xff", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested deeper"),
        (b"1" * (MAX_DIGITS + 1), "a number of 41 digits"),
        (b"1e400", "not finite"),
        (b"[NaN]", "not finite"),
        (b'{"a": 1, "a": 2}', "'a' stands there twice"),
        (rb'{"a\u0000": 1}', "a NUL in 'a\\x00'"),
        (rb'["\ud800"]', "half a surrogate pair"),
    ],
)
def test_what_no_reader_should_have_to_bear(content: bytes, words: str) -> None:
    with pytest.raises(RunError) as caught:
        parse_json(content, "the file")
    assert str(caught.value).startswith("the file is damaged (")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_usual_is_read() -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deep, "it") == json.loads(deep)
    assert parse_json('\ufeff{"ä": [1, 1e300, "\\ud83d\\ude00"]}'.encode(), "it") == {"ä": [1, 1e300, "😀"]}
    # Configurations hold these.
    assert parse_json('{"a": Infinity, "a": 1000000000000000019884624838656}', "it", lenient=True) == {"a": int(1e30)}


@dataclass(frozen=True, kw_only=True)
class Point:
    x: int
    weight: float = 1.0
    colours: tuple[str, ...] = ()


class Loose(TypedDict, total=False):
    points: list[Point]
    kind: Literal["a", "b"] | None
    sizes: Mapping[str, int]


def test_records_are_made_of_what_fits_them() -> None:
    found = shaped({"points": [{"x": 1, "weight": 2, "colours": ["red"]}], "kind": None, "more": [0]}, Loose, "it")
    assert found == {"points": [Point(x=1, weight=2, colours=("red",))], "kind": None, "more": [0]}


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (5, Loose, "it: the content should be an object, not 5; mend it"),
        ({"points": [{"x": True}]}, Loose, "it: points[0].x should be a whole number, not True; mend it"),
        ({"points": [{"x": 1, "colours": "red"}]}, Loose, "it: points[0].colours should be a list, not 'red'; mend it"),
        ({"points": [{}]}, Loose, "it: points[0] lacks x; mend it"),
        ({"points": [{"x": 1, "y": 2}]}, Loose, "it: points[0] has an unknown entry 'y'; mend it"),
        ({"kind": "c"}, Loose, "it: kind should be 'a' or 'b', not 'c'; mend it"),
        ({"sizes": {"s": 1.5}}, Loose, "it: sizes.s should be a whole number, not 1.5; mend it"),
        ([1], tuple[int, int], "it: the content should be a list of 2, not [1]; mend it"),
    ],
)
def test_what_does_not_fit_is_named(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        shaped(value, kind, "it", error=CheckpointError, way_out="mend it")
    assert str(caught.value) == message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is missing"):
        load_json(tmp_path / "none")
    with pytest.raises(RunError, match="cannot be read: Is a directory"):
        load_json(tmp_path)


class Files:
    """A checkpoint pair and everything that sftknow keeps of it as files that travel, and what reads each of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(1)
        names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
        values = {name: rng.choice([0.0, 0.5, 1.0], size=(5, 7)) for name in names}
        moved = {name: np.where(rng.random(p.shape) < 0.5, p + 0.25, p) for name, p in values.items()}
        self.base = write_checkpoint(folder / "base", {name: stored(p, "BF16") for name, p in values.items()})
        tuned = {name: stored(s, "BF16") for name, s in moved.items()}
        self.tuned = write_checkpoint(folder / "tuned", tuned, shards=2)
        self.single = write_checkpoint(folder / "single", tuned)
        analysis = analyse(self.base, self.tuned, ["10%", "50%"])
        write_analysis(folder / "changes", analysis)
        write_patch(self.base, self.tuned, analysis.plan, "50%", folder / "p.safetensors")
        named = {"path": "../data", "repo": None, "revision": None, "fingerprint": "f"}
        content = {"base": {"path": "org/base", "sha256": "0"}, "mastery_dataset": named, "sft": {"fact_ids": ["a"]}}
        write_manifest(self.tuned, "model", {**content, "restoration": {"key": "0", "level": "50%"}})
        write_delta(self.base, self.single, folder / "delta")
        self.out = folder / "out"

    def plan(self) -> None:
        plan = read_plan(self.folder / "changes" / "plan.json")
        restore(self.base, self.tuned, plan, plan.cuts[0].level, self.out, manifest={})

    def changes(self) -> None:
        read_analysis(self.folder / "changes")

    def patch(self) -> None:
        apply_patch(self.tuned, self.folder / "p.safetensors", self.out)

    def manifest(self) -> None:
        read_manifest(self.tuned, "model")
        dataset_of_model(self.tuned)
        analyse(self.base, self.tuned, ["10%"])

    def index(self) -> None:
        analyse(self.base, self.tuned, ["10%"])

    def weights(self) -> None:
        analyse(self.base, self.single, ["10%"])

    def delta(self) -> None:
        stored_weights(self.folder / "delta")
        materialize(self.base, self.folder / "delta", self.out)

    @property
    def kinds(self) -> dict[str, tuple[Path, Callable[[], None]]]:
        """By kind: the file that is damaged, and what is done with it."""
        return {
            "plan": (self.folder / "changes" / "plan.json", self.plan),
            "changes": (self.folder / "changes" / "changes.json", self.changes),
            "patch": (self.folder / "p.safetensors", self.patch),
            "manifest": (self.tuned / "sftknow.json", self.manifest),
            "index": (self.tuned / "model.safetensors.index.json", self.index),
            "config": (self.tuned / "config.json", self.index),
            "weights": (self.single / "model.safetensors", self.weights),
            "delta": (self.folder / "delta" / "delta.json", self.delta),
        }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


KINDS = ["plan", "changes", "patch", "manifest", "index", "config", "weights", "delta"]


def _damage(kind: str, raw: bytes) -> st.SearchStrategy[bytes]:
    if raw[:1] == b"{":
        return damaged_json(json.loads(raw)) | damaged_bytes(raw)
    return damaged_safetensors(raw)


def _fuzz(files: Files, kind: str, data: st.DataObject) -> None:
    """A damaged file is used, or refused in one line that a terminal can show, and no output is left."""
    file, use = files.kinds[kind]
    whole = file.read_bytes()
    file.write_bytes(data.draw(_damage(kind, whole)))
    said = None
    try:
        use()
    except SftknowError as error:
        said = str(error)
    finally:
        left = files.out.exists()
        shutil.rmtree(files.out, ignore_errors=True)
        file.write_bytes(whole)
    if said is not None:
        assert "\n" not in said
        assert not left
        said.encode()  # so that a terminal can show it


quick = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


@pytest.mark.parametrize("kind", KINDS)
@settings(quick, max_examples=20)
@given(data=st.data())
def test_damaged_files_are_refused_in_one_line(files: Files, kind: str, data: st.DataObject) -> None:
    _fuzz(files, kind, data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(quick, max_examples=200)
@given(data=st.data())
def test_1600_damaged_files_are_refused_in_one_line(files: Files, kind: str, data: st.DataObject) -> None:
    _fuzz(files, kind, data)


@pytest.mark.slow
@settings(quick, max_examples=1500)
@given(data=st.data())
def test_what_the_safetensors_library_refuses_is_refused(files: Files, data: st.DataObject) -> None:
    raw = (files.single / "model.safetensors").read_bytes()
    file = files.folder / "any.safetensors"
    file.write_bytes(data.draw(damaged_safetensors(raw)))
    try:
        read_header(file)
    except CheckpointError:
        return
    try:
        with safe_open(file, "np"):
            pass
    except SafetensorError as error:
        pytest.fail(f"the library refuses what was read: {error}")


@pytest.mark.parametrize(
    ("header", "behind", "words"),
    [
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', 8, "4 bytes that belong to no tensor"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', 8, "the header and a have a gap"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e400]}}', 4, "1e400 is not finite"),
        (f'{{"a": {{"dtype": "F32", "shape": [1], "data_offsets": [0, {"9" * 5000}]}}}}', 4, "5000 digits"),
        ("[" * 100_000, 0, "nested deeper"),
        (r'{"a\u0000b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', 4, "a NUL in 'a\\x00b'"),
        (r'{"\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', 4, "half a surrogate pair"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"x": 1}}', 4, "__metadata__"),
    ],
)
def test_headers(tmp_path: Path, header: str, behind: int, words: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(behind))
    with pytest.raises(CheckpointError) as caught:
        read_index(tmp_path)
    assert words in str(caught.value)
    if "NUL" not in words:  # which the library lets through
        with pytest.raises(SafetensorError), safe_open(file, "np"):
            pass


def test_text_in_markdown() -> None:
    assert markdown_text("<b>a|b</b> [x](y)\n`c\\d` *e_") == (
        r"&lt;b&gt;a\|b&lt;/b&gt; \[x\](y)" + "\n" + r"\`c\\d\` *e_"
    )
    assert markdown_text("*e_", "*_") == r"\*e\_"


def test_names_that_lead_elsewhere() -> None:
    refuse_outside(["a", "a/b", "..a"], "it")
    for name in ("/etc/passwd", "../a", "a/../../b", "", "."):
        with pytest.raises(RunError, match=r"^it: '.*' is no path within its folder; copy or download it again$"):
            refuse_outside([name], "it")
