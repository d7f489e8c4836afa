"""The table of what sftknow leans on inside other packages, held against installed versions and against the code."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

from sftknow.cli.main import main
from sftknow.dependencies import installed, needs, outside, supported, unsuitable
from sftknow.errors import DependencyError

PACKAGE = Path(__file__).resolve().parents[1] / "sftknow"
WATCHED = {
    "transformers", "trl", "lm_eval", "datasets", "huggingface_hub", "peft", "numba", "llvmlite", "accelerate",
    "evaluate", "tokenizers", "safetensors", "ray", "vllm", "inspect_ai", "torch",
}  # fmt: skip
PROMISED = {
    "accelerate.utils", "huggingface_hub.errors", "huggingface_hub.utils", "inspect_ai.dataset",
    "inspect_ai.model", "inspect_ai.scorer", "inspect_ai.solver", "llvmlite.binding", "lm_eval.tasks",
    "ray.data", "ray.exceptions", "ray.util.scheduling_strategies", "torch.nn.functional", "torch.overrides",
    "transformers.utils",
}  # fmt: skip
"""Modules below the top that are documented for users."""
ENVIRONMENT = re.compile(r"(HF|ACCELERATE|FSDP|DISABLE|TRL|NUMBA|TRANSFORMERS|DATASETS)_[A-Z_]+")
OWN_ENVIRONMENT = {"HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_XET"}
"""Variables that their packages document for users."""


@dataclass(frozen=True, kw_only=True)
class Inside:
    """A row of the table, whose head says what the columns mean."""

    package: str
    what: str
    kind: Literal["name", "argument", "source"]
    where: tuple[str, ...]
    why: str
    since: str
    without: str


ROWS = [
    Inside(**{**row, "where": tuple(row["where"])})
    for row in tomllib.loads((PACKAGE / "insides.toml").read_text(encoding="utf-8"))["inside"]
]


def row_id(row: Inside) -> str:
    return f"{row.package}: {row.what}"


def resolve(dotted: str) -> Any:
    """What an importable dotted name stands for."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(dotted)


@cache
def sources(package: str) -> tuple[Path, ...]:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return tuple(sorted(Path(spec.origin).parent.rglob("*.py")))


def test_the_table_has_no_row_twice() -> None:
    assert len({row_id(row) for row in ROWS}) == len(ROWS)
    assert {row.package for row in ROWS} <= WATCHED


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_every_row_holds_in_the_installed_version(row: Inside) -> None:
    if installed(row.package) is None and row.package in ("ray", "vllm", "inspect_ai"):
        pytest.skip(f"{row.package} is an extra and not installed")
    if row.kind == "name":
        resolve(row.what)
    elif row.kind == "argument":
        match = re.fullmatch(r"([\w.]+)\(([\w|]+)\)", row.what)
        assert match
        assert set(match[2].split("|")) & set(inspect.signature(resolve(match[1])).parameters)
    else:
        word = row.what.rpartition(".")[2]
        assert any(word in path.read_text(encoding="utf-8", errors="replace") for path in sources(row.package))


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_every_row_names_where_it_is_used(row: Inside) -> None:
    word = row.what if " " in row.what else re.split(r"[.(]", row.what.partition("(")[0])[-1]
    argument = re.search(r"\(([\w|]+)\)", row.what)
    words = argument[1].split("|") if argument else [word]
    for where in row.where:
        text = (PACKAGE / where).read_text(encoding="utf-8")
        assert any(word in text for word in words), f"{where} does not speak of {' or '.join(words)}"


def inside_uses(path: Path) -> Iterator[str]:
    """Names of other packages' insides that a module of sftknow uses."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in WATCHED:
            deep = "." in node.module and node.module not in PROMISED
            yield from (f"{node.module}.{each.name}" for each in node.names if deep or each.name.startswith("_"))
        elif isinstance(node, ast.Import):
            yield from (
                each.name
                for each in node.names
                if each.name.split(".")[0] in WATCHED and "." in each.name and each.name not in PROMISED
            )
        elif isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "other", "os")
            # A named tuple's own names are public; argparse has no public way to a parser's options and wrapping.
            if not own and node.attr not in ("_replace", "_fields", "_actions", "_fill_text"):
                yield node.attr
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and ENVIRONMENT.fullmatch(node.value)
            and node.value not in OWN_ENVIRONMENT
        ):
            yield node.value


def test_no_inside_is_used_without_a_row() -> None:
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        known = [row.what.partition("(")[0] for row in ROWS if where in row.where]
        for use in inside_uses(path):
            last = use.rpartition(".")[2]
            if not any(what == use or what.startswith(f"{use}.") or what.rpartition(".")[2] == last for what in known):
                missing.append(f"{where}: {use}")
    assert missing == []


def test_a_use_without_a_row_would_be_seen(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "from transformers.cache_utils import Cache\nimport trl.trainer\nx = model._secret\n"
        "y = 'ACCELERATE_USE_MAGIC'\nz = self._own\nfrom huggingface_hub.errors import HTTPError\n"
    )
    assert sorted(inside_uses(module)) == [
        "ACCELERATE_USE_MAGIC",
        "_secret",
        "transformers.cache_utils.Cache",
        "trl.trainer",
    ]


# ---- where something is missing --------------------------------------------------------------------------------


def one_line(error: DependencyError, *words: str) -> bool:
    return "\n" not in str(error) and all(word in str(error) for word in words)


def test_a_missing_name_is_one_line_with_both_versions() -> None:
    with pytest.raises(DependencyError) as caught, needs("transformers"):
        from transformers.cache_utils import NoSuchCache  # noqa: F401
    assert one_line(caught.value, f"transformers {installed('transformers')}", "NoSuchCache", supported("transformers"))
    assert caught.value.exit_code == 2


def test_a_missing_module_is_one_line() -> None:
    with pytest.raises(DependencyError) as caught, needs("lm_eval"):
        import lm_eval.no_such_module  # noqa: F401
    assert one_line(
        caught.value, "lm_eval.no_such_module", "pip install 'lm_eval==" if "==" in supported("lm_eval") else ""
    )


def test_a_missing_attribute_is_one_line() -> None:
    from transformers import GenerationConfig

    with pytest.raises(DependencyError) as caught, needs("transformers"):
        GenerationConfig.no_such_thing  # noqa: B018
    assert one_line(caught.value, "no_such_thing")


def test_a_package_that_is_not_there_at_all_stays_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError), needs("no_such_package"):
        import no_such_package  # noqa: F401


@pytest.mark.parametrize("package", sorted({row.package for row in ROWS}))
def test_every_package_of_the_table_has_a_range(package: str) -> None:
    assert re.fullmatch(r"[<>=!~]=?[\w.]+(,[<>=!~]=?[\w.]+)*", supported(package)), package
    assert supported(package) in str(unsuitable(package, "something"))


def test_the_installed_versions_are_within_their_ranges() -> None:
    assert outside() == []
    assert requires("sftknow")


def test_a_crash_under_a_strange_version_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise TypeError("forward() got an unexpected keyword argument")

    monkeypatch.setattr("sftknow.resources.task_folder", broken)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0" if name == "transformers" else "0")
    monkeypatch.setattr("sftknow.dependencies.version", importlib.metadata.version)
    with pytest.raises(TypeError):
        main(["tasks", "path"])
    assert "transformers 99.0 (works with " in capsys.readouterr().err


# ---- insides that a later version might drop --------------------------------------------------------------------


def test_a_cache_that_asks_more_of_its_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sftknow.grading.slot_cache import SlotCache, SlotLayer

    monkeypatch.setattr(SlotLayer, "__abstractmethods__", frozenset({"get_something_new"}))
    with pytest.raises(DependencyError) as caught:
        SlotCache(slots=2, columns=4)
    assert one_line(caught.value, "transformers", "get_something_new")


def test_a_trainer_that_reports_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sftknow.training.trainer as trainer

    monkeypatch.setattr(trainer, "SFTTrainer", type("SFTTrainer", (), {}))
    with pytest.raises(DependencyError, match=r"trl .* lacks SFTTrainer\._send_telemetry"):
        trainer.build_trainer(None, None, [], None)


def test_a_setting_that_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sftknow.training.arguments as arguments
    from sftknow.training.recipe import SFTRecipe

    class Config:
        def __init__(self, output_dir: str, seed: int) -> None: ...

    monkeypatch.setattr(arguments, "SFTConfig", Config)
    with pytest.raises(DependencyError, match=r"trl .* lacks SFTConfig\(.*train_sampling_strategy"):
        arguments.training_arguments(SFTRecipe(), tmp_path, seed=0)


def test_a_compiler_that_keeps_its_code_in_another_way_compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    from sftknow.parameters.compiled import compiled

    calls: list[dict[str, Any]] = []

    def njit(**options: Any) -> Any:
        calls.append(options)
        return lambda function: ModuleType("compiled")

    monkeypatch.setattr(numba, "njit", njit)
    compiled(lambda x: x)
    assert [call.get("cache") for call in calls] == [True, None]
