"""Every command on a tiny model of every family: passed, or refused in one line; written by `python -m tests.matrix`.

The models are made in code: random weights, two layers, the shape and the names of files that transformers gives them.
The whole takes some minutes on two cores; `--kept FILE` keeps what is done, model by model, and goes on from there.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import string
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: nothing here is on a Hub

import torch
import transformers
from safetensors.torch import load_file, save_file

from sftknow.cli.main import main
from tests.tiny import tiny_facts, tiny_mastery_data, tiny_tokenizer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
COMMANDS = ("grade", "sft", "evaluate", "divergence", "changes", "restore", "restore --choose-on", "publish")
YES, FAULT = "yes", "fault: "

_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_LLAMA = {**_SHAPE, "num_key_value_heads": 2, "head_dim": 8}
_VISION = {**{name: size for name, size in _SHAPE.items() if name != "max_position_embeddings"}, "image_size": 8}
_VISION |= {"patch_size": 4}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a tiny model of one family is made, and what its files have beside what transformers saves."""

    build: Callable[[Mapping[str, int]], Any]
    """Given the ids of the special tokens and the vocabulary's size."""
    further_layer: str | None = None
    """A multi-token-prediction layer, as on the Hub, in the file of the ``base`` or of the ``tuned`` model."""


def _causal(name: str, **settings: Any) -> Callable[[Mapping[str, int]], Any]:
    def build(tokens: Mapping[str, int]) -> Any:
        config = getattr(transformers, f"{name}Config")(**{**tokens, **settings})
        return transformers.AutoModelForCausalLM.from_config(config)

    return build


def _wrapped(name: str, text: str, vision: str, **settings: Any) -> Callable[[Mapping[str, int]], Any]:
    def build(tokens: Mapping[str, int]) -> Any:
        config = getattr(transformers, f"{name}Config")(
            text_config=getattr(transformers, f"{text}Config")(**tokens, **_LLAMA),
            vision_config=getattr(transformers, f"{vision}Config")(**_VISION),
            image_token_index=tokens["vocab_size"] - 1,
            **settings,
        )
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)

    return build


_GLM = _causal(
    "Glm4Moe",
    **_LLAMA,
    moe_intermediate_size=16,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    first_k_dense_replace=1,
    num_nextn_predict_layers=1,
)

FAMILIES = {
    "Llama": Family(build=_causal("Llama", **_LLAMA)),
    # Further rows, as Qwen's own: its tokenizer class adds a token of its own.
    "Qwen 2": Family(build=_causal("Qwen2", **_LLAMA, tie_word_embeddings=True, vocab_size=400)),
    "Qwen 3": Family(build=_causal("Qwen3", **_LLAMA)),
    "Qwen 3 MoE": Family(build=_causal("Qwen3Moe", **_LLAMA, **_EXPERTS)),
    "Gemma 2": Family(build=_causal("Gemma2", **_LLAMA)),
    "Gemma 3 (text)": Family(build=_causal("Gemma3Text", **_LLAMA)),
    "Gemma 3 (vision-language)": Family(build=_wrapped("Gemma3", "Gemma3Text", "SiglipVision", mm_tokens_per_image=1)),
    "LLaVA (vision-language)": Family(build=_wrapped("Llava", "Llama", "CLIPVision")),
    "Mistral": Family(build=_causal("Mistral", **_LLAMA)),
    "Mixtral": Family(build=_causal("Mixtral", **_LLAMA, num_local_experts=4, num_experts_per_tok=2)),
    "GPT-2": Family(build=_causal("GPT2", n_embd=32, n_layer=2, n_head=4, n_positions=256)),
    "GPT-NeoX (Pythia)": Family(build=_causal("GPTNeoX", **_SHAPE)),
    "OPT": Family(
        build=_causal("OPT", **{**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": True})
    ),
    "Phi": Family(build=_causal("Phi", **_SHAPE)),
    "Phi 3": Family(build=_causal("Phi3", **_SHAPE, num_key_value_heads=2)),
    "Falcon": Family(build=_causal("Falcon", hidden_size=32, num_hidden_layers=2, num_attention_heads=4)),
    "GLM-4-MoE": Family(build=_GLM),
    "GLM-4-MoE, MTP layer in the base": Family(build=_GLM, further_layer="base"),
    "GLM-4-MoE, MTP layer in the fine-tuned model": Family(build=_GLM, further_layer="tuned"),
}
"""By the name that the table shows."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What all models are asked; see `questions`."""

    tokenizer: Any
    facts: Path
    mastery: Path


def questions(folder: Path) -> Questions:
    """A tokenizer, six facts to grade, and a graded data set with facts in every bucket.

    Any letter is an answer, so that a random model starts one sooner or later and its divergence can be measured.
    """
    facts = folder / "facts.jsonl"
    rows = [
        {"topic": fact.topic, "subject": fact.subject, "object": fact.object, "split": fact.split}
        for fact in [*tiny_facts(2), *tiny_facts(2, split="dev"), *tiny_facts(2, split="test")]
    ]
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = tiny_mastery_data(folder / "graded", aliases=tuple(string.ascii_letters))
    return Questions(tokenizer=tiny_tokenizer(), facts=facts, mastery=data)


def make(family: Family, tokenizer: Any, folder: Path) -> Path:
    """Save a random model of the family in bfloat16, with its tokenizer; return its folder."""
    torch.manual_seed(0)
    tokens = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    family.build({"vocab_size": len(tokenizer), **tokens}).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if family.further_layer == "base":
        add_further_layer(folder)
    return folder


def add_further_layer(folder: Path) -> None:
    """Put a copy of the last decoder layer behind it, with the projections of multi-token prediction."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    last, further = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    copies = {name.replace(last, further): value.clone() for name, value in tensors.items() if name.startswith(last)}
    width = tensors["model.embed_tokens.weight"].shape[1]
    copies[f"{further}eh_proj.weight"] = torch.ones(width, 2 * width, dtype=torch.bfloat16)
    copies |= {f"{further}{norm}.weight": torch.ones(width, dtype=torch.bfloat16) for norm in ("enorm", "hnorm")}
    save_file({**tensors, **copies}, file, metadata={"format": "pt"})


def move(base: Path, tuned: Path) -> None:
    """Where `sft` refuses: the base with half of its values changed, as if another program had fine-tuned it."""
    shutil.copytree(base, tuned)
    file = tuned / "model.safetensors"
    tensors = {name: value * (1 + 0.1 * (torch.rand(value.shape) < 0.5)) for name, value in load_file(file).items()}
    save_file({name: value.bfloat16() for name, value in tensors.items()}, file, metadata={"format": "pt"})


def cells(name: str, asked: Questions, folder: Path) -> Iterator[tuple[str, str]]:
    """Every command on one family's model, in an empty folder: the command, and its `outcome`."""
    family = FAMILIES[name]
    base, tuned = str(make(family, asked.tokenizer, folder / "base")), str(folder / "tuned")
    mastery = ["--mastery", str(asked.mastery)]
    changed = "--set", "learning_rate=0.01"
    levels = ["--top", "5%,20%"]
    calls: dict[str, Sequence[str]] = {
        "grade": [base, "--facts", str(asked.facts), "--samples", "1", "--out", str(folder / "own")],
        "sft": ["--model", base, *mastery, "--bucket", "0", "--size", "4", "--out", tuned, *changed],
        "evaluate": [tuned, *mastery, "--limit", "1", "--out", str(folder / "scores")],
        "divergence": [base, tuned, *mastery, "--any-base", "--window", "64", "--out", str(folder / "divergence")],
        "changes": [base, tuned, "--levels", "5%,20%", "--out", str(folder / "changes")],
        "restore": [base, tuned, *levels, "--out", str(folder / "restored")],
        "restore --choose-on": ["--choose-on", "dev", base, tuned, *levels, *mastery, "--out", str(folder / "best")],
        "publish": [str(folder / "restored" / "20pct"), "--to", "org/name", "--licence", "mit", "--dry-run"],
    }
    for command in COMMANDS:
        yield command, outcome([command.split()[0], *calls[command]])
        if command == "sft" and not Path(tuned).is_dir():
            move(Path(base), Path(tuned))
        if command == "sft" and family.further_layer == "tuned":
            add_further_layer(Path(tuned))


def outcome(argv: Sequence[str]) -> str:
    """``yes`` where the command ends well, the line that refuses it where it ends so, else what it did as a fault."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main(list(argv))
    except Exception:
        return f"{FAULT}{traceback.format_exc()}"
    if code == 0:
        return YES
    said = [line for line in err.getvalue().splitlines() if line.startswith("sftknow: ")]
    if code != 2 or len(said) != 1:
        return f"{FAULT}ended with {code}: {err.getvalue()}"
    return re.sub(r"/\S+/(?=[\w.-])", "", said[0].removeprefix("sftknow: "))


def table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """The page's table; what refuses stands below it, numbered."""
    reasons: dict[str, int] = {}
    lines = ["| Model | " + " | ".join(f"`{command}`" for command in COMMANDS) + " |"]
    lines.append("| :-- |" + " :-: |" * len(COMMANDS))
    for name, row in rows.items():
        shown = [YES if row[c] == YES else f"no ({reasons.setdefault(row[c], len(reasons) + 1)})" for c in COMMANDS]
        lines.append("| " + " | ".join([name, *shown]) + " |")
    notes = [f"({number}) {reason}" for reason, number in reasons.items()]
    return "\n\n".join(["\n".join(lines), *notes])


def page(rows: Mapping[str, Mapping[str, str]]) -> str:
    """The whole of docs/models.md."""
    return f"""# Models that sftknow works with

A tiny model of each family, with random weights and two layers, went through every command; `python -m tests.matrix`
does it again and writes this page. *yes*: the command did its work. *no*: it refused in one line, which stands below
the table. Where `sft` refuses, the other commands got a model as another program would have fine-tuned it. Models are
stored in bfloat16, as transformers saves them.

{table(rows)}
"""


def read_page(text: str) -> dict[str, dict[str, str]]:
    """The outcomes that a page shows, the inverse of `page`."""
    reasons = dict(re.findall(r"^\((\d+)\) (.*)$", text, re.MULTILINE))
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    said = {f"no ({number})": reason for number, reason in reasons.items()} | {YES: YES}
    return {name: dict(zip(COMMANDS, (said[cell] for cell in row), strict=True)) for name, *row in lines}


def rows_of(names: Sequence[str], folder: Path, kept: Path | None = None) -> dict[str, dict[str, str]]:
    """The outcomes by model and command.

    Args:
        names: of `FAMILIES`.
        folder: an empty one, for models and data.
        kept: a JSON file of earlier outcomes, which are not made again; the new ones are added to it.
    """
    rows: dict[str, dict[str, str]] = json.loads(kept.read_text()) if kept and kept.is_file() else {}
    asked = questions(folder)
    for number, name in enumerate(names):
        if name in rows:
            continue
        place = folder / str(number)
        rows[name] = dict(cells(name, asked, place))
        shutil.rmtree(place)
        print(f"{name}: {rows[name]}", flush=True)
        if kept:
            kept.write_text(json.dumps(rows, indent=1))
    return {name: rows[name] for name in names}


def faults(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What neither passed nor was refused in one line."""
    return [f"{m}: {c}: {said}" for m, row in rows.items() for c, said in row.items() if said.startswith(FAULT)]


def write_page() -> int:
    """Write docs/models.md, where there are no faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="outcomes by model, kept from start to start")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = rows_of(tuple(FAMILIES), Path(temporary), arguments.kept)
    if wrong := faults(rows):
        print(*wrong, sep="\n")
        return 1
    PAGE.write_text(page(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(write_page())
