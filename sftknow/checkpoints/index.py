"""Which tensor of a checkpoint lies where: read from safetensors headers, without loading a tensor.

The index is plain data. `reader` reads tensors by it, `layout` plans output by it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from numpy.typing import NDArray

from sftknow.errors import CheckpointError
from sftknow.untrusted import MAX_BYTES, load_json, parse_json, shaped

SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
DELTA_INDEX = "delta.json"
"""In a folder that keeps a checkpoint as what differs from its base; see `sftknow.checkpoints.deltas`."""

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one element, by the dtype names of the safetensors format that fill whole bytes."""

_PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_AGAIN = "copy or download it again"
_CODES = re.compile(r"F[468](_|$)")  # not F64
_QUANTISED_SUFFIXES = (".qweight", ".qzeros", ".absmax", ".quant_map", ".SCB", ".weight_scale", ".weight_packed")


Made = Callable[[int, NDArray[Any]], None]
"""Fills a contiguous array with a tensor's bytes from an offset within it on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """Where one tensor lies."""

    name: str
    file: Path
    dtype: str
    """The safetensors name, such as ``BF16``."""
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the start of the file."""
    end: int
    """One past the last byte."""
    parts: tuple[TensorEntry, ...] = ()
    """Where its elements lie in several stored tensors, one after another: these. File and bytes are the first's."""
    made: Made | None = None
    """What makes its bytes; None where they are those in the file."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class CheckpointIndex:
    """All tensors of one checkpoint folder."""

    folder: Path
    tensors: Mapping[str, TensorEntry]
    """By name."""
    shards: tuple[Path, ...]
    """The safetensors files, in order of their names."""
    shard_index: Path | None
    """``model.safetensors.index.json`` where the checkpoint has one."""
    config: Mapping[str, Any]
    """``config.json``, empty where there is none."""
    base_folder: Path | None = None
    """Of an adapter that is read merged: the folder of its base, whose files these are."""

    @property
    def tied(self) -> bool | None:
        """Whether config.json ties the output head to the embedding; None where it does not say."""
        for place in (self.config, self.config.get("text_config")):
            if isinstance(place, Mapping) and isinstance(place.get("tie_word_embeddings"), bool):
                return bool(place["tie_word_embeddings"])
        return None


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first few names for a one-line message, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def read_index(folder: Path) -> CheckpointIndex:
    """Read the index of a checkpoint folder: ``model.safetensors``, or shards with ``model.safetensors.index.json``.

    As in ``from_pretrained``, the single file comes first where both are there.

    Raises:
        CheckpointError: no folder, no safetensors weights (pickles are never opened), a LoRA adapter, a quantised
            checkpoint, a missing shard, a damaged or truncated file, an index that does not fit its shards.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder that holds {SINGLE_FILE}")
    refuse_adapter(folder)
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    if (folder / SINGLE_FILE).is_file():
        shards, shard_index, weight_map = [folder / SINGLE_FILE], None, None
    elif (folder / SHARD_INDEX).is_file():
        shard_index = folder / SHARD_INDEX
        weight_map = _weight_map(shard_index)
        shards = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        raise CheckpointError(no_weights(folder))

    tensors: dict[str, TensorEntry] = {}
    for shard in shards:
        for entry in read_header(shard):
            if entry.name in tensors:
                raise CheckpointError(f"{folder}: {entry.name} is stored in two shards; save the model again")
            tensors[entry.name] = entry
    if weight_map is not None:
        _check_weight_map(folder, weight_map, tensors)
    index = CheckpointIndex(
        folder=folder, tensors=tensors, shards=tuple(shards), shard_index=shard_index, config=config
    )
    _refuse_quantised(index)
    return index


class _Described(TypedDict):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_header(file: Path) -> list[TensorEntry]:
    """The tensors of one safetensors file, in the order of their bytes.

    Raises:
        CheckpointError: the file is missing, truncated, or one that the safetensors library refuses, too.
    """
    header, data, size = _header(file)
    entries = []
    for name, value in header.items():
        if name == "__metadata__":
            continue
        what = f"{file}: the header's entry of {name}"
        found: _Described = shaped(value, _Described, what, error=CheckpointError, way_out=_AGAIN)
        if not _Described.__annotations__.keys() <= found.keys():
            raise CheckpointError(f"{what} is damaged; {_AGAIN}")
        (begin, end), dtype, shape = found["data_offsets"], found["dtype"], tuple(found["shape"])
        entry = TensorEntry(name=name, file=file, dtype=dtype, shape=shape, start=data + begin, end=data + end)
        if not 0 <= begin <= end or min(shape, default=0) < 0 or entry.end > size:
            raise CheckpointError(f"{file} ends before {name} does; {_AGAIN}")
        bits = _PACKED_BITS.get(dtype) or 8 * ITEM_BYTES.get(dtype, 0)
        if not bits:
            raise CheckpointError(f"{file}: {name} is stored as {dtype!r}, which is no dtype of safetensors; {_AGAIN}")
        if entry.elements * bits != 8 * (end - begin):
            raise CheckpointError(f"{file}: the bytes of {name} do not fit its shape; {_AGAIN}")
        entries.append(entry)
    entries.sort(key=lambda entry: (entry.start, entry.end))
    before, position = "the header", data
    for entry in entries:
        if entry.start != position:
            what = "overlap" if entry.start < position else "have a gap between them"
            raise CheckpointError(f"{file}: {before} and {entry.name} {what}; {_AGAIN}")
        before, position = entry.name, entry.end
    if position != size:
        raise CheckpointError(f"{file} has {size - position} bytes that belong to no tensor; {_AGAIN}")
    return entries


def read_metadata(file: Path) -> dict[str, str]:
    """``__metadata__`` of a safetensors file; empty where it has none. Raises as `read_header`."""
    return dict(_header(file)[0].get("__metadata__") or {})


def _header(file: Path) -> tuple[dict[str, Any], int, int]:
    """A file's header, where its tensors begin, and the file's size."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            prefix = handle.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(size - 8, MAX_BYTES):
                raise CheckpointError(f"{file} is not a whole safetensors file; {_AGAIN}")
            content = handle.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing, though the checkpoint needs it; {_AGAIN}") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    header = parse_json(content, f"the header of {file}", error=CheckpointError, way_out=_AGAIN)
    if not isinstance(header, dict) or not content.startswith(b"{"):
        raise CheckpointError(f"{file} has a damaged safetensors header; {_AGAIN}")
    metadata = Mapping[str, str] | None
    shaped(header.get("__metadata__"), metadata, f"{file}: __metadata__", error=CheckpointError, way_out=_AGAIN)
    return header, 8 + length, size


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint. Raises CheckpointError where it is missing or no JSON object."""
    return _read_object(folder / "config.json", lenient=True)


def _read_object(file: Path, *, lenient: bool = False) -> dict[str, Any]:
    value = load_json(file, error=CheckpointError, way_out=_AGAIN, lenient=lenient)
    return shaped(value, Mapping[str, Any], file, error=CheckpointError, way_out=_AGAIN)


def _weight_map(shard_index: Path) -> dict[str, str]:
    weight_map = _read_object(shard_index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{shard_index} has no weight_map; {_AGAIN}")
    for name, file in weight_map.items():
        # A shard lies next to its index: nothing in a downloaded file may point elsewhere, nor at a pickle.
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{shard_index}: {name} is said to lie in {file!r}, which is no shard beside it")
    return weight_map


def index_metadata(index: CheckpointIndex) -> dict[str, Any]:
    """``metadata`` of ``model.safetensors.index.json``; empty where the checkpoint has none."""
    found = _read_object(index.shard_index).get("metadata") if index.shard_index else None
    return found if isinstance(found, dict) else {}


def _check_weight_map(folder: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorEntry]) -> None:
    misplaced = [name for name, file in weight_map.items() if name not in tensors or tensors[name].file.name != file]
    if misplaced:
        raise CheckpointError(f"{folder}: not in the shard that {SHARD_INDEX} names: {listed(misplaced)}")
    unlisted = [name for name in tensors if name not in weight_map]
    if unlisted:
        raise CheckpointError(f"{folder}: stored, but not listed in {SHARD_INDEX}: {listed(unlisted)}")


def refuse_adapter(folder: Path) -> None:
    """Raise CheckpointError where a folder holds a LoRA adapter, which is no checkpoint of its own."""
    if (folder / "adapter_config.json").is_file() or (folder / "adapter_model.safetensors").is_file():
        raise CheckpointError(
            f"{folder} is a LoRA adapter, and a whole model is needed here; merge it first: AutoPeftModelForCausalLM."
            f"from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained(OUT), then give OUT"
        )


def _refuse_quantised(index: CheckpointIndex) -> None:
    way_out = "its values are codes, not parameters: give the checkpoint in bf16, fp16 or fp32"
    for place in (index.config, index.config.get("text_config")):
        if isinstance(place, Mapping) and place.get("quantization_config"):
            how = place["quantization_config"]
            method = how.get("quant_method") if isinstance(how, Mapping) else None
            if method == "bitsandbytes":
                way_out += f", or write one: {_dequantising(index.folder)}"
            elif method:
                way_out += f" that it was made from (its card names it; transformers has no way back from {method})"
            raise CheckpointError(f"{index.folder} is quantised (config.json says so); {way_out}")
    for entry in index.tensors.values():
        if entry.name.endswith(_QUANTISED_SUFFIXES) or _CODES.match(entry.dtype):
            raise CheckpointError(f"{index.folder} is quantised ({entry.name} is {entry.dtype}); {way_out}")


def stored_small(folder: Path) -> str:
    """What to say of a folder that keeps a checkpoint as a delta where whole weights are needed."""
    return f"{folder} is stored small; write the whole checkpoint first: sftknow materialize {folder} --out FOLDER"


def _dequantising(folder: Path) -> str:
    """A command that writes the values of a checkpoint that bitsandbytes packed."""
    return (
        'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"M.from_pretrained({str(folder)!r}).dequantize().save_pretrained('OUT'); "
        f"T.from_pretrained({str(folder)!r}).save_pretrained('OUT')\", then give OUT"
    )


def packed_in_gguf(file: Path) -> str:
    """What to say of a GGUF file in the place of a checkpoint: how to write one from it."""
    place = f"{str(file.parent)!r}, gguf_file={file.name!r}"
    return (
        f"{file} is a GGUF file, not safetensors; give the checkpoint that it was made from, or write one (pip install "
        f'gguf): python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"m = M.from_pretrained({place}); q = m.__dict__.pop('hf_quantizer', None); m.config.__dict__.pop("
        f"'quantization_config', None); m.save_pretrained('OUT'); T.from_pretrained({place}).save_pretrained('OUT')\", "
        "then give OUT"
    )


def no_weights(folder: Path) -> str:
    """What to say of a folder without safetensors weights."""
    if (folder / DELTA_INDEX).is_file():
        return stored_small(folder)
    pickles = sorted(
        path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth"} and "training" not in path.name
    )
    if pickles:
        return (
            f"{folder} holds pickled weights ({listed(pickles)}), which sftknow never opens; load the model with "
            "transformers where you trust it and save_pretrained it, which writes safetensors"
        )
    packed = sorted(folder.glob("*.gguf"))
    if packed:
        return packed_in_gguf(packed[0])
    return f"{folder} has neither {SINGLE_FILE} nor {SHARD_INDEX}; give the folder of a whole checkpoint"
