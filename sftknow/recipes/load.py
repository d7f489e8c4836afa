"""Read a recipe: by name or file, with ``--set`` on top, every mistake named with its line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from sftknow.errors import RecipeError
from sftknow.recipes.schema import Recipe, Section
from sftknow.resources import recipe_folder

S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes ``1e-5`` for text; people who write learning rates mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader: no objects are made


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe that ships by that name, or the path itself.

    Raises:
        RecipeError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in {".yaml", ".yml"} or "/" in name:
        raise RecipeError(f"there is no recipe file {name}")
    shipped = recipe_folder() / f"{name}.yaml"
    if not shipped.is_file():
        raise RecipeError(
            f"no recipe is called {name}; there are: {', '.join(shipped_recipes())} (or give a YAML file)"
        )
    return shipped


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name: of a shipped recipe, or a YAML file.
        overrides: ``section.key=value`` texts, the value in YAML; later ones win.

    Raises:
        RecipeError: the file is no YAML, a key is unknown or a value does not fit; the message names the line.
    """
    path = find_recipe(name)
    text = path.read_text(encoding="utf-8")
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = _parse(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise RecipeError(f"{where}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections")
    content.setdefault("name", path.stem)
    origin: dict[tuple[str, ...], str] = {}
    for override in overrides:
        keys, value = _parse_override(override)
        _put(content, keys, value, override)
        origin[keys] = f"--set {override}"
    try:
        return Recipe.model_validate(_tuples(content))
    except ValidationError as error:
        problems = error.errors()
        keys = _path(problems[0])
        # A field that may be one of several things complains once for each of them.
        same = [p for p in problems if _path(p)[: len(keys)] == keys]
        complaint = _unknown(keys) if same[0]["type"] == "extra_forbidden" else _wrong(keys, same)
        raise RecipeError(f"{_where(path, tree, keys, origin)}: {complaint}") from None


def override_section(section: type[S], overrides: Sequence[str]) -> S:
    """A section of a recipe by its defaults, with ``key=value`` texts on top.

    Raises:
        RecipeError: a key is unknown or a value does not fit.
    """
    content: dict[str, Any] = {}
    for override in overrides:
        keys, value = _parse_override(override)
        content[".".join(keys)] = value
    try:
        return section.model_validate(_tuples(content))
    except ValidationError as error:
        problems = error.errors()
        key = str(problems[0]["loc"][0])
        if problems[0]["type"] == "extra_forbidden":
            raise RecipeError(f"--set: unknown key {key}; known: {', '.join(section.model_fields)}") from None
        raise RecipeError(f"--set: {_wrong((key,), problems)}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML that `load_recipe` reads back to the same recipe."""
    return str(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override}: write it as section.key=value")
    try:
        return tuple(key.strip().split(".")), _parse(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {override}: the value is not YAML") from None


def _put(content: dict[str, Any], keys: tuple[str, ...], value: Any, override: str) -> None:
    for key in keys[:-1]:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise RecipeError(f"--set {override}: {key} is no section")
    content[keys[-1]] = value


def _tuples(value: Any) -> Any:
    """YAML has lists where the schema, being frozen, has tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _where(path: Path, tree: Any, keys: tuple[str, ...], origin: dict[tuple[str, ...], str]) -> str:
    for length in range(len(keys), 0, -1):
        if keys[:length] in origin:
            return origin[keys[:length]]
    line, node = 1, tree
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            break
        for name, child in node.value:
            if name.value == key:
                line, node = name.start_mark.line + 1, child
                break
        else:
            break
    return f"{path}, line {line}"


def _path(problem: Any) -> tuple[str, ...]:
    """Section, key and list index of a problem, without pydantic's names for the members of a union."""
    return tuple(str(part) for part in problem["loc"] if isinstance(part, int) or re.fullmatch(r"[a-z_]\w*", str(part)))


def _unknown(keys: tuple[str, ...]) -> str:
    section: Any = Recipe
    for key in keys[:-1]:
        section = section.model_fields[key].annotation
    return f"unknown key {'.'.join(keys)}; known here: {', '.join(section.model_fields)}"


def _wrong(keys: tuple[str, ...], problems: Sequence[Any]) -> str:
    wishes = []
    for problem in problems:
        wish = problem["msg"].replace("Input should be a valid tuple", "a list").replace("Input should be ", "")
        if wish not in wishes:
            wishes.append(wish)
    return f"{'.'.join(keys)} should be {' or '.join(wishes)}, not {problems[0]['input']!r}"
