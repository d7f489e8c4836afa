"""Which files besides the weights belong to a checkpoint: to write them with it, and to delete nothing else with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sftknow.artifacts.manifests import MANIFEST, read_manifest
from sftknow.checkpoints.adapters import CONFIG, WEIGHTS
from sftknow.checkpoints.index import DELTA_INDEX, SHARD_INDEX, CheckpointIndex, listed
from sftknow.errors import CheckpointError

_SIDE_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".py", ".tiktoken", ".bpe", ".vocab", ".spm"}
_NESTED_SUFFIXES = {".jinja", ".py"}  # additional chat templates and custom code; other folders hold results
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
# What tells of a training run or of another folder, not of the model that is being written.
_NOT_COPIED = {
    SHARD_INDEX, "sftknow.json", "loss.json", "trainer_state.json",
    "train_results.json", "eval_results.json", "all_results.json", "pytorch_model.bin.index.json",
}  # fmt: skip
# What sftknow and transformers write into a model's folder under names of their own.
_WRITTEN = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|delta\.bin|delta-config\.json|README\.md|loss\.json|(generation_)?config\.json"
    r"|vocab\.(json|txt)|merges\.txt|chat_template\.(jinja|json)|(tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json"
    r"|(tokenizer|spiece|sentencepiece\.bpe)\.model|(\w+_)?processor_config\.json|preprocessor_config\.json"
    rf"|{re.escape(MANIFEST)}|{re.escape(SHARD_INDEX)}|{re.escape(DELTA_INDEX)}"
)


def side_files(folder: Path) -> list[Path]:
    """Files that make a folder loadable with its weights: configs, tokenizer, chat templates, custom code, licence.

    Relative to the folder, sorted. Hidden files, training leftovers, cards and weights of any format are left out.
    """
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        leftover = any(part.startswith((".", "checkpoint-", "__pycache__")) for part in relative.parts)
        suffixes = _SIDE_SUFFIXES if len(relative.parts) == 1 else _NESTED_SUFFIXES
        wanted = path.suffix in suffixes or _is_legal(path)
        if wanted and not leftover and path.name not in _NOT_COPIED and path.is_file():
            found.append(relative)
    return sorted(found)


_OF_TOKENIZER = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt|vocab\.txt"
    r"|(tokenizer|spiece|sentencepiece\.bpe)\.model|chat_template\.(jinja|json)|.*\.jinja"
)


def side_sources(index: CheckpointIndex) -> dict[Path, Path]:
    """`side_files` of a checkpoint, each with the file to copy.

    Those of an adapter that is read merged are its base's; where it has a tokenizer of its own, that goes before.
    """
    own = side_files(index.folder)
    if index.base_folder is None:
        return {name: index.folder / name for name in own}
    tokenizer = [name for name in own if _OF_TOKENIZER.fullmatch(str(name))]
    of_base = [name for name in side_files(index.base_folder) if not (tokenizer and _OF_TOKENIZER.fullmatch(str(name)))]
    return {name: index.base_folder / name for name in of_base} | {name: index.folder / name for name in tokenizer}


def refuse_foreign(folder: Path, *, sources: Sequence[Path] = ()) -> None:
    """Refuse to replace a folder by a model where anything in it may not have been written by sftknow.

    Args:
        folder: the place; nothing, an empty folder and a model of sftknow may be there.
        sources: checkpoints whose side files models get copies of.

    Raises:
        CheckpointError: a file is there, another folder, or a model with somebody's files in it.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise CheckpointError(f"{folder} holds something else than a model of sftknow; give a new or an empty folder")
    if not folder.is_dir():
        return
    copied = {file for source in sources if source.is_dir() for file in side_files(source)}
    own = copied | set(filter(_is_legal, side_files(folder)))
    if ((read_manifest(folder, "model") or {}).get("restoration") or {}).get("adapter"):
        own |= {Path(CONFIG), Path(WEIGHTS)}  # of a repaired adapter
    there = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    foreign = sorted(str(file) for file in there if file not in own and not _WRITTEN.fullmatch(str(file)))
    if foreign:
        raise CheckpointError(
            f"{folder} holds {listed(foreign)}, which sftknow did not write and would be lost; move that elsewhere or "
            "give another folder"
        )


def _is_legal(file: Path) -> bool:
    return file.name.upper().startswith(_LEGAL)
