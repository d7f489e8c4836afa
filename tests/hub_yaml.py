"""What the Hub checks in the head of a README.md before it takes one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

HEAD = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)

_LICENCES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
"""
LICENCES = frozenset(_LICENCES.split())
"""Identifiers, from the Hub's documentation of licences."""

RESERVED_SPLITS = ("all",)
"""Names that `datasets` keeps for itself: a data set with such a split loads for nobody."""

_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_SPLIT = re.compile(r"\w+(\.\w+)*")


def yaml_errors(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a README.md, as ``validate-yaml`` gives them."""
    found = HEAD.match(content)
    if found is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        head = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [str(error)], []
    return (list(_complaints(head)), []) if isinstance(head, dict) else (["metadata must be of type object"], [])


def _complaints(head: dict[str, Any]) -> Iterator[str]:
    for licence in _listed(head.get("license")):
        if licence not in LICENCES:
            yield f'"license" must be one of [{", ".join(sorted(LICENCES))}]'
    for field in ("base_model", "datasets", "source_datasets"):
        for name in _listed(head.get(field)):
            if not isinstance(name, str) or not _REPO.fullmatch(name):
                yield f'"{field}" with value "{name}" is not valid. Use an id from https://hf.co/{field}.'
    for language in _listed(head.get("language")):
        if not isinstance(language, str) or language != language.lower():
            yield f'"language" must only contain lowercase characters: {language}'
    for i, config in enumerate(head.get("configs") or ()):
        if not isinstance(config.get("config_name"), str):
            yield f'"configs[{i}].config_name" must be a string'
        files = config.get("data_files")
        for entry in files if isinstance(files, list) else ():
            split = entry.get("split") if isinstance(entry, dict) else None
            if split is not None and (split in RESERVED_SPLITS or not _SPLIT.fullmatch(str(split))):
                yield f'"configs[{i}].data_files": the split cannot be called {split}'


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


FRAMEWORKS = ("inspect-ai", "math-arena", "mteb", "olmocr-bench", "harbor", "swe-bench", "nemo-evaluator")
"""Some of the evaluation frameworks that the Hub has a list of."""
_SOLVERS = ("prompt_template", "system_message", "user_message", "chain_of_thought", "generate", "multiple_choice")
_SCORERS = ("includes", "match", "pattern", "answer", "exact", "f1", "choice", "math")


def benchmark_errors(content: bytes) -> list[str]:
    """What is wrong with an ``eval.yaml``, by the Hub's documentation of evaluation results."""
    head = _loaded(content, dict)
    if head is None:
        return ["eval.yaml must be of type object"]
    found = [f"{name} is missing" for name in ("name", "description") if not isinstance(head.get(name), str)]
    if head.get("evaluation_framework") not in FRAMEWORKS:
        found.append("evaluation_framework is none that the Hub knows")
    tasks = head.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        return [*found, "tasks must be a list with an entry"]
    ids = [task.get("id") for task in tasks]
    found += ["task ids must be texts, each once"] if len({*ids}) < len(ids) or not all(ids) else []
    for task in tasks:
        found += [f"{key} is no field of a task" for key in {*task} - {"id", "config", "split", *_INSPECT}]
        if head.get("evaluation_framework") == "inspect-ai":
            found += [f"{task['id']}: {key} is missing" for key in _INSPECT if not task.get(key)]
            found += [s["name"] for s in task.get("solvers", ()) if s["name"] not in _SOLVERS]
            found += [s["name"] for s in task.get("scorers", ()) if s["name"] not in _SCORERS]
    return found


_INSPECT = ("field_spec", "solvers", "scorers")


def results_errors(content: bytes) -> list[str]:
    """What is wrong with an ``.eval_results`` file, by the same documentation."""
    entries = _loaded(content, list)
    if entries is None:
        return ["evaluation results must be a list"]
    found = []
    for entry in entries:
        dataset, source = entry.get("dataset") or {}, entry.get("source")
        found += [f"dataset.{key} is missing" for key in ("id", "task_id") if not isinstance(dataset.get(key), str)]
        found += ["value is missing"] if entry.get("value") is None else []
        found += ["source.url is missing"] if source is not None and not source.get("url") else []
    return found


def _loaded(content: bytes, kind: type) -> Any:
    try:
        found = yaml.safe_load(content)
    except yaml.YAMLError:
        return None
    return found if isinstance(found, kind) else None
