"""Which facts the base's own completions keep, and what is noted of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from sftknow.answers import DEFAULT_RULE, MatchRule
from sftknow.divergence.base import NOT_NEAR, measure_base, starts_near
from sftknow.divergence.selection import NO_TALLIES, select_prompts
from sftknow.errors import MasteryDataError
from sftknow.prompts import prompt_ids, question_prompt
from tests.divergence.models import STATEMENTS, Scripted, fact, row
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def words(text: str, count: int) -> str:
    """The text of the first few tokens."""
    return TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"][:count])


def spread(*subjects: str, answer: str = "Arden", aliases: tuple[str, ...] = ()) -> Any:
    return select_prompts([row(fact(s, answer=answer, aliases=aliases)) for s in subjects], STATEMENTS)


def reasons(view: Any) -> dict[str, int]:
    return dict(Counter(skipped.reason for skipped in view.skipped))


def scripted(**completions: str) -> Scripted:
    return Scripted(TOKENIZER, {f"The capital of {subject} is": text for subject, text in completions.items()})


@pytest.mark.parametrize(
    ("completion", "head", "expected"),
    [
        (" Arden, a city", " Ar", True),
        (" Arden, a city", " the", True),  # it starts at the first character, whatever the head is
        (" the city of Arden.", " the city of", False),  # it starts one character behind the head
        (" the city of Arden.", " the city of A", True),  # the first letter is enough
        (" the city of Arden.", " the city of ", False),  # a space is not a letter of it
        (" Belmora.", " Belmora.", False),
        (" arden", " arden", False),
        ("", "", False),
        (" Belmora and Arden", " Bel", False),
        (" Great Ardenia, once Arden", " Great A", True),  # containment, as everywhere
        (" Gross-Arden", " Gross", True),  # an alias comes first
    ],
)
def test_starts_near(completion: str, head: str, expected: bool) -> None:
    assert starts_near(completion, head, ("Arden", "Gross-Arden"), DEFAULT_RULE) is expected


def test_starts_near_follows_the_matching_rule() -> None:
    assert starts_near(" arden", " ar", ("Arden",), MatchRule(case_sensitive=False)) is True
    assert starts_near(" Cote d’Or", " C", ("Cote d'Or",), DEFAULT_RULE) is True


def test_facts_are_kept_by_where_their_answer_starts() -> None:
    late, inside = " a b Arden", " a Arden."
    assert "A" not in words(late, 3)
    assert "A" in words(inside, 3)
    model = scripted(Onia=" Arden", Tuland=" Belmora", Zed=late, Wye=inside)
    view = measure_base(model, TOKENIZER, spread("Onia", "Tuland", "Zed", "Wye"))
    assert [c.fact.subject for c in view.choices] == ["Onia", "Wye"]
    assert view.completions[0] == " Arden"
    assert reasons(view) == {NOT_NEAR: 2}
    wider = measure_base(model, TOKENIZER, spread("Onia", "Tuland", "Zed", "Wye"), window=12)
    assert [c.fact.subject for c in wider.choices] == ["Onia", "Zed", "Wye"]
    assert reasons(wider) == {NOT_NEAR: 1}


def test_an_answer_that_starts_in_the_windows_last_token_is_seen_whole() -> None:
    # "Halmstad" takes several tokens; the third token is its first.
    text = " a b Halmstad"
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    starts = next(i for i in range(len(ids)) if "H" in TOKENIZER.decode(ids[: i + 1]))
    model = Scripted(TOKENIZER, {"The capital of Onia is": text})
    assert measure_base(model, TOKENIZER, spread("Onia", answer="Halmstad"), window=starts + 1).completions == (text,)
    with pytest.raises(MasteryDataError):
        measure_base(model, TOKENIZER, spread("Onia", answer="Halmstad"), window=starts)


def test_aliases_keep_a_fact() -> None:
    model = scripted(Onia=" Belmora")
    assert len(measure_base(model, TOKENIZER, spread("Onia", aliases=("Belmora",))).choices) == 1


def test_completions_do_not_depend_on_the_batch() -> None:
    model = scripted(Onia=" Arden and more and more", Tu=" Arden", Zedland=" a Arden")
    selection = spread("Onia", "Tu", "Zedland")
    views = [measure_base(model, TOKENIZER, selection, batch_size=size) for size in (1, 2, 64)]
    assert len({view.completions for view in views}) == 1
    assert all(torch.equal(view.logits, views[0].logits) for view in views)


def test_the_view_holds_ids_and_logits_in_the_order_of_its_facts() -> None:
    model = scripted(Onia=" Arden", Tulandia=" a Arden", Z=" Arden")
    view = measure_base(model, TOKENIZER, spread("Onia", "Tulandia", "Z"), batch_size=2)
    assert [TOKENIZER.decode(ids) for ids in view.prompt_ids] == [f"<s>{prompt}" for prompt in view.prompts]
    assert all(ids.count(TOKENIZER.bos_token_id) == 1 for ids in view.prompt_ids)
    first = [TOKENIZER(text, add_special_tokens=False)["input_ids"][0] for text in view.completions]
    assert view.logits.argmax(-1).tolist() == first
    assert view.logits.shape == (3, len(TOKENIZER))
    assert view.logits.dtype == torch.float32
    assert view.answer_tokens[0] == first[0] == view.answer_tokens[1]


def test_the_question_prompt_is_that_of_fine_tuning() -> None:
    selection = spread("Onia")
    question = selection.choices[0].fact.question
    model = Scripted(TOKENIZER, {question_prompt(question): " Arden"})
    view = measure_base(model, TOKENIZER, selection, prompt="question")
    assert view.prompt_ids == (tuple(prompt_ids(TOKENIZER, question)),)
    assert view.shown == "question"


def test_skips_of_the_selection_are_carried_on() -> None:
    selection = select_prompts([row(fact("Onia")), row(fact("Zed"), ())], STATEMENTS)
    assert reasons(measure_base(scripted(Onia=" Arden"), TOKENIZER, selection)) == {NO_TALLIES: 1}


def test_no_fact_left_is_one_line() -> None:
    with pytest.raises(MasteryDataError, match=r"no answer within its first 3 tokens \(1 facts of bucket 4 tried\)"):
        measure_base(scripted(Onia=" Belmora"), TOKENIZER, spread("Onia"))


@pytest.mark.parametrize("wrong", [{"prompt": "both"}, {"window": 0}, {"batch_size": 0}])
def test_senseless_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        measure_base(scripted(Onia=" Arden"), TOKENIZER, spread("Onia"), **wrong)
