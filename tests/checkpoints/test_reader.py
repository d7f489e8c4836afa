from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sftknow.checkpoints.reader import (
    CheckpointReader,
    narrow,
    nonfinite,
    read_index,
    round_to_bfloat16,
    widen,
)
from sftknow.errors import CheckpointError, ModelError
from sftknow.models.resolving import resolve_model
from tests.parameters.checkpoint_pairs import stored, write_checkpoint, write_file

TENSORS = {
    "b": torch.arange(12.0).reshape(3, 4).bfloat16(),
    "a": torch.tensor(2.5, dtype=torch.float16),
    "c": torch.zeros(0, 3),
    "d": torch.arange(5, dtype=torch.int64),
    "e": torch.linspace(-1, 1, 7),
}


def test_index_and_reader_on_the_librarys_own_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    index = read_index(tmp_path)
    assert {name: (entry.dtype, entry.shape) for name, entry in index.tensors.items()} == {
        "a": ("F16", ()), "b": ("BF16", (3, 4)), "c": ("F32", (0, 3)), "d": ("I64", (5,)), "e": ("F32", (7,)),
    }  # fmt: skip
    with CheckpointReader() as reader:
        for name in "abe":
            entry = index.tensors[name]
            values = TENSORS[name].float().numpy().reshape(-1)
            for first in range(entry.elements):
                for count in range(1, entry.elements - first + 1):
                    found = widen(reader.read(entry, first, count), entry.dtype)
                    np.testing.assert_array_equal(found, values[first : first + count])
        with pytest.raises(ValueError, match="no elements"):
            reader.read(index.tensors["b"], 10, 3)


def test_shards(tmp_path: Path) -> None:
    tensors = {name: stored(np.arange(i + 1), "F32") for i, name in enumerate("abcde")}
    index = read_index(write_checkpoint(tmp_path, tensors, shards=2))
    assert [path.name for path in index.shards] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    with CheckpointReader() as reader:
        for i, name in enumerate("abcde"):
            assert reader.read(index.tensors[name], 0, i + 1).tobytes() == tensors[name][1].tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_value_of_16_bits(dtype: str) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    finite = np.isfinite(widen(bits, dtype))
    torch_dtype = {"BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    expected = torch.from_numpy(bits.view(np.int16).copy()).view(torch_dtype).float().numpy()
    np.testing.assert_array_equal(widen(bits, dtype), expected)
    np.testing.assert_array_equal(narrow(widen(bits[finite], dtype), dtype), bits[finite])
    assert nonfinite(bits, dtype) == (int(np.isnan(expected).sum()), 2)
    assert nonfinite(bits[finite], dtype) == (0, 0)


def test_rounding_is_that_of_torch() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    halfway = np.arange(0x3F80_0000, 0x3F90_0000, 0x8000, dtype=np.uint32)
    values = np.concatenate([bits, halfway, [0, 1, 0x8000_0000, 0x7F7F_FFFF]]).astype(np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    rounded = torch.from_numpy(values).bfloat16()
    np.testing.assert_array_equal(round_to_bfloat16(values), rounded.float().numpy())
    np.testing.assert_array_equal(narrow(values, "BF16"), rounded.view(torch.int16).numpy().view(np.uint16))
    half = torch.from_numpy(values).half().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(narrow(values, "F16"), half)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_index(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "nowhere")
    assert "neither" in refusal(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert "neither" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pickled" in refusal(tmp_path)


def header(value: object, data: bytes = b"") -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not a whole"),
        (b"\x01\x02", "not a whole"),
        (struct.pack("<Q", 10**12) + b"{}", "not a whole"),
        (header(b"{nonsense"), "damaged"),
        (header(b"\xff\xfe\xfd"), "damaged"),
        (header([]), "damaged"),
        (header({"a": {"dtype": "F32"}}), "entry of a"),
        (header({"a": {**ENTRY, "data_offsets": [0]}}, bytes(8)), "entry of a"),
        (header({"a": ENTRY}, bytes(7)), "ends before a"),
        (header({"a": {**ENTRY, "shape": [3]}}, bytes(8)), "do not fit its shape"),
        (header({"a": {**ENTRY, "shape": [-1, -2]}}, bytes(8)), "ends before a"),
        (header({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)), "overlap"),
    ],
)
def test_damaged_files(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw)
    assert words in refusal(tmp_path)


def test_damaged_shards(tmp_path: Path) -> None:
    tensors = {name: stored([1.0], "F32") for name in "abcd"}
    folder = write_checkpoint(tmp_path / "model", tensors, shards=2)
    second = "model-00002-of-00002.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())

    def with_map(**changes: str | None) -> str:
        entries = {**index["weight_map"], **changes}
        weight_map = {name: file for name, file in entries.items() if file}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return refusal(folder)

    assert "not listed" in with_map(a=None)
    assert "not in the shard" in with_map(a=second)
    assert "not in the shard" in with_map(z=second)
    assert "no shard beside it" in with_map(a="../elsewhere.safetensors")
    assert "no shard beside it" in with_map(a="pytorch_model.bin")
    write_file(folder / second, {name: tensors[name] for name in "abd"})
    assert "two shards" in with_map()
    (folder / second).unlink()
    assert "is missing" in with_map()
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "no weight_map" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json is damaged" in refusal(folder)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    index = read_index(write_checkpoint(tmp_path, {"a": stored(np.ones(9), "F32")}))
    with (tmp_path / "model.safetensors").open("rb+") as file:
        file.truncate(index.tensors["a"].start + 8)
    with CheckpointReader() as reader, pytest.raises(CheckpointError, match="ends within a"):
        reader.read(index.tensors["a"], 0, 9)


def test_reading_into_an_array(tmp_path: Path) -> None:
    index = read_index(
        write_checkpoint(tmp_path, {"a": stored(np.arange(9), "F32"), "b": stored(np.arange(5), "BF16")})
    )
    out = np.empty(4, dtype=np.uint32)
    with CheckpointReader() as reader:
        reader.read_into(index.tensors["a"], 3, out)
        np.testing.assert_array_equal(widen(out, "F32"), np.float32([3, 4, 5, 6]))
        with pytest.raises(ValueError, match="no elements"):
            reader.read_into(index.tensors["a"], 6, out)
        with pytest.raises(ValueError, match="of that width"):
            reader.read_into(index.tensors["b"], 0, out)
        (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-30])
        with pytest.raises(CheckpointError, match="ends within a"):
            reader.read_into(index.tensors["a"], 5, out)


def test_bytes_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    target = np.empty(4, dtype=np.uint8)
    with CheckpointReader() as reader:
        reader.read_bytes(tmp_path / "f", 3, target)
        assert target.tobytes() == b"3456"
        with pytest.raises(EOFError):
            reader.read_bytes(tmp_path / "f", 8, target)


def test_gguf(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    said = refusal(tmp_path)
    assert f"{tmp_path / 'model-q4.gguf'} is a GGUF file" in said
    command = said.partition('python -c "')[2].partition('"')[0]
    compile(command, "command", "exec")
    assert f"from_pretrained({str(tmp_path)!r}, gguf_file='model-q4.gguf')" in command
    with pytest.raises(ModelError, match="is a GGUF file"):
        resolve_model(str(tmp_path / "model-q4.gguf"), None, None)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("bitsandbytes", "from_pretrained({folder!r}).dequantize().save_pretrained('OUT')"),
        ("gptq", "that it was made from (its card names it; transformers has no way back from gptq)"),
        ("awq", "that it was made from (its card names it; transformers has no way back from awq)"),
    ],
)
def test_quantised_by_name(tmp_path: Path, method: str, words: str) -> None:
    save_file({"w": torch.zeros(2, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    config = {"model_type": "llama", "quantization_config": {"quant_method": method, "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = refusal(tmp_path)
    assert "is quantised (config.json says so)" in said
    assert words.format(folder=str(tmp_path)) in said
    assert "\n" not in said
