"""Read a recipe: by name or file, with ``--set`` on top, every mistake named with its line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sftknow.errors import OptionError, RecipeError, did_you_mean
from sftknow.options import K, from_settings
from sftknow.recipes.schema import Recipe
from sftknow.records import to_json
from sftknow.resources import recipe_folder


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
        near = did_you_mean(name, shipped_recipes())
        raise RecipeError(
            f"no recipe is called {name}; there are: {', '.join(shipped_recipes())} (or give a YAML file){near}"
        )
    return shipped


def load_recipe(name: str | Path, overrides: Sequence[str] = (), *, whole: bool = True) -> Recipe:
    """Read and check a recipe.

    Args:
        name: of a shipped recipe, or a YAML file.
        overrides: ``section.key=value`` texts, the value in YAML; later ones win.
        whole: it must say which model and which facts it is about; False where it is read for something else.

    Raises:
        RecipeError: the file is no YAML, a key is unknown or a value does not fit; the message names the line. It names
            no model, or no facts: those of the lab would be taken in silence.
    """
    path = find_recipe(str(name))
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
    for section in _ABOUT:
        if content.get(section, 0) is None:  # a section without a key
            del content[section]
    origin: dict[tuple[str, ...], str] = {}
    for override in overrides:
        keys, value = _parse_override(override)
        _put(content, keys, value, override)
        origin[keys] = f"--set {override}"
    try:
        recipe = from_settings(Recipe, content)
    except OptionError as error:
        raise RecipeError(f"{_where(path, tree, error.keys, origin)}: {error}") from None
    for section, key, option in _ABOUT_KEYS if whole else ():
        if key not in content.get(section, ()):
            raise RecipeError(
                f"{path} does not say which {section} it is about; add {section}.{key} ({option} on the command line); "
                f"`lab` stands for {_ABOUT[section]}"
            )
    return recipe


_ABOUT = {"model": "the small model that ships with sftknow", "facts": "the facts that it was trained on"}
_ABOUT_KEYS = (("model", "path", "--model"), ("facts", "source", "--facts"))


def override_section(section: type[K], overrides: Sequence[str], **given: Any) -> K:
    """A section of a recipe by its defaults, with ``key=value`` texts on top.

    Args:
        section: the class.
        overrides: later ones win.
        given: other defaults.

    Raises:
        RecipeError: a key is unknown or a value does not fit.
    """
    for override in overrides:
        keys, value = _parse_override(override)
        given[".".join(keys)] = value
    try:
        return from_settings(section, given)
    except OptionError as error:
        raise RecipeError(f"--set: {error}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML that `load_recipe` reads back to the same recipe."""
    return str(yaml.safe_dump(to_json(recipe.settings()), sort_keys=False, allow_unicode=True))


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
