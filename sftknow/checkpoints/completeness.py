"""Whether a local checkpoint has the weights of all its layers.

lm-eval loads a model with whatever is there: transformers fills missing tensors with random numbers and only warns, and
the scores would be those of noise.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sftknow.checkpoints.index import SHARD_INDEX, read_header
from sftknow.errors import CheckpointError, ModelError
from sftknow.records import ModelRef
from sftknow.untrusted import load_json

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def check_files(ref: ModelRef) -> None:
    """Refuse a folder whose safetensors lack shards or layers; other formats and the Hub's files are not looked at.

    Raises:
        ModelError: a shard or a layer is missing, or a file is damaged.
    """
    folder = Path(ref.path)
    shards = sorted(folder.glob("*.safetensors"))
    if not folder.is_dir() or not (folder / "config.json").is_file() or not shards:
        return
    index = _read(folder / SHARD_INDEX) if (folder / SHARD_INDEX).is_file() else {}
    weight_map = index.get("weight_map")
    named = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    absent = [name for name in named if not (folder / name).is_file()]
    if absent:
        raise ModelError(f"{ref} lacks the weight files {', '.join(absent)}, which its index names; copy it again")
    try:
        names = [entry.name for shard in shards for entry in read_header(shard)]
    except CheckpointError as error:
        raise ModelError(str(error)) from None
    found = {int(match[1]) for name in names if (match := _LAYER.search(name))}
    layers = _layers(_read(folder / "config.json"))
    missing = sorted(set(range(layers)) - found) if found else []
    if missing:
        raise ModelError(
            f"{ref} has {layers} layers by its config.json and no weights for layer "
            f"{', '.join(map(str, missing[:8]))}; they would be random numbers: copy or save the model again"
        )


def _layers(config: dict[str, Any]) -> int:
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    counts = [place[key] for place in (text or {}, config) for key in _COUNTS if isinstance(place.get(key), int)]
    return int(counts[0]) if counts else 0


def _read(path: Path) -> dict[str, Any]:
    content = load_json(path, error=ModelError, lenient=True)
    return content if isinstance(content, dict) else {}
