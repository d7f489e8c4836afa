"""Which files besides the weights belong to a checkpoint, so that a folder that is written from it loads too."""

from __future__ import annotations

from pathlib import Path

from sftknow.checkpoints.index import SHARD_INDEX

_SIDE_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".py", ".tiktoken", ".bpe", ".vocab", ".spm"}
_NESTED_SUFFIXES = {".jinja", ".py"}  # additional chat templates and custom code; other folders hold results
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
# What tells of a training run or of another folder, not of the model that is being written.
_NOT_COPIED = {
    SHARD_INDEX, "sftknow.json", "loss.json", "trainer_state.json",
    "train_results.json", "eval_results.json", "all_results.json", "pytorch_model.bin.index.json",
}  # fmt: skip


def side_files(folder: Path) -> list[Path]:
    """Files that make a folder loadable with its weights: configs, tokenizer, chat templates, custom code, licence.

    Relative to the folder, sorted. Hidden files, training leftovers, cards and weights of any format are left out.
    """
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        leftover = any(part.startswith((".", "checkpoint-", "__pycache__")) for part in relative.parts)
        suffixes = _SIDE_SUFFIXES if len(relative.parts) == 1 else _NESTED_SUFFIXES
        wanted = path.suffix in suffixes or path.name.upper().startswith(_LEGAL)
        if wanted and not leftover and path.name not in _NOT_COPIED and path.is_file():
            found.append(relative)
    return sorted(found)
