"""Which tensor of a checkpoint lies where: read from safetensors headers, without loading a tensor.

The index is plain data. `reader` reads tensors by it, `layout` plans output by it.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftknow.errors import CheckpointError

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

_MAX_HEADER = 100_000_000  # the limit of the safetensors library itself
_CODES = re.compile(r"F[468](_|$)")  # not F64
_QUANTISED_SUFFIXES = (".qweight", ".qzeros", ".absmax", ".quant_map", ".SCB", ".weight_scale", ".weight_packed")


@dataclass(frozen=True, kw_only=True)
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
    config = _read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
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


def read_header(file: Path) -> list[TensorEntry]:
    """The tensors of one safetensors file, in the order of their bytes.

    Raises:
        CheckpointError: the file is missing, truncated, or not a safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            prefix = handle.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise CheckpointError(f"{file} is not a whole safetensors file; copy or download it again")
            header = json.loads(handle.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing, though the checkpoint needs it; copy or download it again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} has a damaged safetensors header ({error}); copy or download it again") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has a damaged safetensors header; copy or download it again")

    entries = []
    for name, value in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = (int(offset) for offset in value["data_offsets"])
            dtype, shape = str(value["dtype"]), tuple(int(extent) for extent in value["shape"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{file}: the header's entry of {name} is damaged; download the file again") from None
        data = 8 + length
        entry = TensorEntry(name=name, file=file, dtype=dtype, shape=shape, start=data + begin, end=data + end)
        if begin < 0 or min(shape, default=0) < 0 or entry.end > size:
            raise CheckpointError(f"{file} ends before {name} does; copy or download it again")
        if dtype in ITEM_BYTES and entry.elements * ITEM_BYTES[dtype] != end - begin:
            raise CheckpointError(f"{file}: the bytes of {name} do not fit its shape; copy or download it again")
        entries.append(entry)
    entries.sort(key=lambda entry: (entry.start, entry.end))
    for before, after in itertools.pairwise(entries):
        if after.start < before.end:
            raise CheckpointError(f"{file}: {before.name} and {after.name} overlap; copy or download it again")
    return entries


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not readable JSON ({error}); copy or download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} does not hold a JSON object; copy or download it again")
    return value


def _weight_map(shard_index: Path) -> dict[str, str]:
    weight_map = _read_object(shard_index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{shard_index} has no weight_map; copy or download it again")
    for name, file in weight_map.items():
        # A shard lies next to its index: nothing in a downloaded file may point elsewhere, nor at a pickle.
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{shard_index}: {name} is said to lie in {file!r}, which is no shard beside it")
    return weight_map


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
            f"{folder} is a LoRA adapter, not a whole model; merge it first: AutoPeftModelForCausalLM."
            f"from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained(OUT), then give OUT"
        )


def _refuse_quantised(index: CheckpointIndex) -> None:
    way_out = "its values are codes, not parameters: give the checkpoint in bf16, fp16 or fp32"
    for place in (index.config, index.config.get("text_config")):
        if isinstance(place, Mapping) and place.get("quantization_config"):
            raise CheckpointError(f"{index.folder} is quantised (config.json says so); {way_out}")
    for entry in index.tensors.values():
        if entry.name.endswith(_QUANTISED_SUFFIXES) or _CODES.match(entry.dtype):
            raise CheckpointError(f"{index.folder} is quantised ({entry.name} is {entry.dtype}); {way_out}")


def stored_small(folder: Path) -> str:
    """What to say of a folder that keeps a checkpoint as a delta where whole weights are needed."""
    return f"{folder} is stored small; write the whole checkpoint first: sftknow materialize {folder} --out FOLDER"


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
    packed = sorted(path.name for path in folder.glob("*.gguf"))
    if packed:
        return f"{folder} holds GGUF files ({listed(packed)}), not safetensors; give the checkpoint they were made from"
    return f"{folder} has neither {SINGLE_FILE} nor {SHARD_INDEX}; give the folder of a whole checkpoint"
