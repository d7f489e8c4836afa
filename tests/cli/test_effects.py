"""Every option that would do nothing is refused by name: all pairs of options of all commands."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sftknow.cli.effects import Case, given_options, rules_of
from sftknow.cli.main import build_parser, main
from sftknow.errors import RecipeError

EXPECTED = Path(__file__).with_name("refused_pairs.json")
"""By command and option: what refuses it, ``alone`` where it needs another one. After a change of the command line
look at each new entry, and write the file anew with ``python -m tests.cli.test_effects``."""


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command and action that takes options."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield name.strip(), parser
    for action in nested:
        for each, below in action.choices.items():
            yield from commands(below, f"{name} {each}")


def written(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar)


def options(parser: argparse.ArgumentParser) -> list[str]:
    """The options of a command as they are written, and those with a value that a rule speaks of."""
    found = [written(action) for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    conditions = [each for rule in rules_of(parser) for each in (*rule.needs, *rule.beside)]
    texts = {each for each in conditions if isinstance(each, str) and "=" in each}
    texts |= {f"{c.option}={value}" for c in conditions if isinstance(c, Case) for value in VALUES[c.option]}
    return [*(each for each in found if each not in VALUES), *sorted(texts)]


VALUES = {"--tasks": ("xsum", "cbqa_mastery"), "--licence": ("mit", "other:Own")}


def refusal(parser: argparse.ArgumentParser, *given: str) -> str | None:
    """What is said of a command line with these options only; None where they all have an effect."""
    values: dict[str, Any] = {}
    for each in given:
        option, _, value = each.partition("=")
        values[option] = value or values.get(option, "some value")
    try:
        for rule in rules_of(parser):
            rule.check(values)
    except RecipeError as error:
        return str(error)
    return None


def refused_pairs() -> dict[str, dict[str, list[str]]]:
    """By command and option: the options beside which it is refused though it is not alone."""
    table: dict[str, dict[str, list[str]]] = {}
    for name, parser in commands(build_parser()):
        known = options(parser)
        rows: dict[str, list[str]] = {each: ["alone"] if refusal(parser, each) else [] for each in known}
        for one, other in itertools.combinations(known, 2):
            said = refusal(parser, one, other)
            if said and "do not go together" in said:
                rows[one].append(other)
                assert all(each.replace("=", " ") in said or each.partition("=")[0] in said for each in (one, other))
        table[name] = rows
    return table


def test_all_pairs_of_all_commands() -> None:
    """A new option is missing in the file: whoever adds it says with which others it does nothing."""
    assert refused_pairs() == json.loads(EXPECTED.read_text(encoding="utf-8"))


def test_rules_speak_of_options_that_are_there() -> None:
    for name, parser in commands(build_parser()):
        known = {written(action) for action in parser._actions}
        for rule in rules_of(parser):
            conditions = [each.option if isinstance(each, Case) else each for each in (*rule.needs, *rule.beside)]
            for option in (*rule.options, *(each.partition("=")[0] for each in conditions)):
                assert option in known, f"{name} has no {option}"


def test_defaults_are_not_given() -> None:
    argv = ["restore", "a", "b", "--top", "5%", "--out", "x", "--no-links", "--mem", "1GB"]
    found = given_options(build_parser(), argv)
    assert found == {
        "BASE": "a", "TUNED": "b", "--top": "5%", "--out": Path("x"), "--no-links": False, "--memory": 10**9,
    }  # fmt: skip
    assert "--splits" not in given_options(build_parser(), ["evaluate", "a"])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("restore a b --plan p --region all --out x", "--region and --plan do not go together: --region would do"),
        ("restore a b --plan p --strategy top --out x", "--strategy and --plan do not go together"),
        ("restore a b --plan p --epsilon 0 --out x", "--epsilon and --plan do not go together"),
        ("restore a b --plan p --layers 0-3 --out x", "--layers and --plan do not go together"),
        ("restore a --apply-patch p --shard-size 5GB --out x", "--shard-size and --apply-patch do not go together"),
        ("restore a b --layer-sweep 4 --strategy top --out x", "--strategy and --layer-sweep do not go together"),
        ("restore a b --layer-sweep 4 --epsilon 0 --out x", "--epsilon and --layer-sweep do not go together"),
        ("restore a b --top 5% --patch --shard-size 5GB --out x", "--shard-size and --patch do not go together"),
        ("restore a b --top 5% --device cuda --out x", "--device does nothing without --choose-on; add that or leave"),
        ("changes a b --seed 3", "--seed does nothing without --strategy"),
        ("changes a b --seed 3 --strategy bottom", "--seed and --strategy bottom do not go together"),
        ("grade --rescore old --samples 4 --out x", "--samples and --rescore do not go together"),
        ("grade a --facts f --address auto --out x", "--address does nothing without --engine ray"),
        ("evaluate a --tasks xsum --splits dev", "--splits and --tasks without cbqa_mastery do not go together"),
        ("evaluate a --article-words 4", "--article-words does nothing without --tasks xsum or gsm8k"),
        ("sft --model a --task xsum --size 8 --show-batch --out x", "--out and --show-batch do not go together"),
        ("run lab --dry-run --open", "--open and --dry-run do not go together"),
        ("lab pretrain --limit 5 --out x", "--limit does nothing without --facts"),
    ],
)  # fmt: skip
def test_what_would_do_nothing_is_refused(
    command: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sftknow: {words}")
    assert list(tmp_path.iterdir()) == []


def test_options_for_a_run_do_nothing_for_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["publish", str(tmp_path), "--to", "org/name", "--only", "data", "--dry-run"]) == 2
    assert f"--only does nothing here: {tmp_path} is no run; leave it out" in capsys.readouterr().err


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps(refused_pairs(), indent=1) + "\n", encoding="utf-8")
