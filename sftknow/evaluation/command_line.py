"""What a task learns from lm-eval's command line: ``--model_args`` and ``--metadata``, merged by lm-eval into one."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from sftknow.errors import MasteryDataError, ModelError, first_line
from sftknow.evaluation.dataset import WAY_OUT
from sftknow.evaluation.greedy import pins
from sftknow.evaluation.prefix import Route, needed_prefix
from sftknow.models.loading import quiet_libraries
from sftknow.records import ModelRef

OWN_KEYS = ("mastery_dataset",)
"""What a person may pass in ``--metadata``."""
HARNESS_KEYS = ("prompt_prefix", "fact_ids")
"""What the in-process harness passes beside it."""
_MISTAKES = ("dataset", "datasets", "data", "mastery")
"""Names for the data set that no model type of lm-eval has as an argument."""
_OTHER_ENGINES = ("vllm_causallms", "vllm_vlms", "sglang_causallms", "trtllm_causallms", "nemo_lm", "megatron_lm")
"""Modules of lm-eval whose models take no arguments of transformers' ``generate``; each is imported on demand."""


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """The arguments that matter to the tasks."""

    mastery_dataset: str | None
    models: tuple[ModelRef, ...]
    """An adapter (``peft=``) before its base (``pretrained=``); empty for a model behind a server."""
    arguments: Mapping[str, Any]
    """Everything that lm-eval handed over."""

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> CommandLine:
        """Read what lm-eval hands over.

        Raises:
            MasteryDataError: a key that looks like one of ours and is none, or a data set that is no text.
        """
        for key in arguments:
            _check_key(str(key))
        dataset = arguments.get("mastery_dataset")
        if dataset is not None and (not isinstance(dataset, str) or not dataset.strip()):
            raise MasteryDataError(f"mastery_dataset is {dataset!r}; {WAY_OUT}")
        revision = arguments.get("revision")
        models = []
        if isinstance(arguments.get("peft"), str):
            models.append(ModelRef(path=arguments["peft"]))
        if isinstance(arguments.get("pretrained"), str) and not arguments.get("base_url"):
            models.append(ModelRef(path=arguments["pretrained"], revision=str(revision) if revision else None))
        return cls(mastery_dataset=dataset, models=tuple(models), arguments=arguments)

    @property
    def route(self) -> Route:
        """Who makes the token ids."""
        if "base_url" not in self.arguments:
            return "local"
        return "server-text" if self.arguments.get("tokenized_requests") is False else "server-ids"

    def prefix(self) -> str:
        """What the prompts begin with; ``""`` where no tokenizer is known (``--model dummy``, a chat server).

        Raises:
            ModelError: the tokenizer cannot be loaded, or lm-eval would show it other ids than those of training.
        """
        tokenizer = self._tokenizer()
        if tokenizer is None:
            return ""
        return needed_prefix(tokenizer, route=self.route, add_bos_token=self.arguments.get("add_bos_token"))

    def generation_pins(self) -> dict[str, Any]:
        """What must be added to the generation arguments so that the model's own ones change nothing; see `greedy`.

        Only transformers reads them: vLLM and servers are given every argument of the task and take no others.

        Raises:
            ModelError: the model has no end token.
        """
        bases = [ref for ref in self.models if ref.path == self.arguments.get("pretrained")]
        tokenizer = self._tokenizer()
        if not bases or tokenizer is None or any(f"lm_eval.models.{name}" in sys.modules for name in _OTHER_ENGINES):
            return {}
        return pins(_generation_config(bases[0], str(self.arguments.get("subfolder") or "")), tokenizer)

    def _tokenizer(self) -> Any:
        name = self.arguments.get("tokenizer") or (self.models[-1].path if self.models else None)
        if name is None and self.route != "local" and self.arguments.get("tokenizer_backend") not in ("None", "none"):
            name = self.arguments.get("model") or self.arguments.get("pretrained")
        if not isinstance(name, str):
            return None
        taken = ("subfolder", "trust_remote_code", "add_bos_token")
        options = {key: self.arguments[key] for key in taken if self.arguments.get(key) is not None}
        try:
            with quiet_libraries():
                tokenizer = AutoTokenizer.from_pretrained(
                    name, revision=str(self.arguments.get("revision") or "main"), **options
                )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"the tokenizer of {name} cannot be loaded: {first_line(error)}") from None
        if len(tokenizer) == 0:
            raise ModelError(f"{name} has a tokenizer without tokens; save its real tokenizer beside the weights")
        return tokenizer


def _generation_config(ref: ModelRef, subfolder: str) -> GenerationConfig:
    """What transformers will take: ``generation_config.json``, else what ``config.json`` holds of it."""
    where = {"revision": ref.revision or "main", "subfolder": subfolder}
    with quiet_libraries():
        try:
            return GenerationConfig.from_pretrained(ref.path, **where)
        except OSError:
            pass
        try:
            return GenerationConfig.from_model_config(AutoConfig.from_pretrained(ref.path, **where))
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"the configuration of {ref} cannot be read: {first_line(error)}") from None


def _check_key(key: str) -> None:
    if key in OWN_KEYS or key in HARNESS_KEYS:
        return
    near = difflib.get_close_matches(key.lower().replace("-", "_"), OWN_KEYS, n=1, cutoff=0.75)
    if near or key in _MISTAKES or key.startswith("mastery"):
        raise MasteryDataError(f"--metadata has {key!r}, which is not known; did you mean mastery_dataset? {WAY_OUT}")


def local_stamp(path: str | None, name: str) -> int:
    """When a file of a local folder was last written, in ns; 0 where there is none."""
    file = Path(path).expanduser() / name if path else None
    return file.stat().st_mtime_ns if file and file.is_file() else 0
