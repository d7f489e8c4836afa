"""No continuation that would have found an answer is given up, and the others are as soon as no answer fits."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sftknow.answers import Matcher, MatchRule, normalize
from sftknow.grading.decoding import decoder_for
from sftknow.grading.reach import Reach, Spelling
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.records import SamplingPolicy
from tests.grading.test_completions import ANSWERS
from tests.grading.test_decoding import TOKENIZERS
from tests.grading.test_transformers_sampler import TOKENIZER, build, requests


def hopeless(reach, left, ids):
    tokens = np.array([[*ids, 0]])
    return bool(reach.hopeless(np.array([0]), np.array([left]), tokens, np.array([len(ids)]))[0])


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), answers=st.lists(ANSWERS, min_size=1, max_size=2), exact_case=st.booleans())
def test_what_finds_an_answer_was_never_given_up(name, data, answers, exact_case):
    tokenizer = TOKENIZERS[name][0]
    rule, decoder = MatchRule(case_sensitive=exact_case), decoder_for(tokenizer)
    matcher, reach = Matcher(answers, rule), Reach(Spelling(decoder, rule), [tuple(answers)])
    words = st.sampled_from(
        [*answers, *"".join(answers), " is", "a", "n", "\u0301", "\u00ad", " \n", "S", "’", "\u212a"]
    )
    ids = [t for word in data.draw(st.lists(words)) for t in tokenizer(word, add_special_tokens=False)["input_ids"]]
    for text_of in (decoder.settled, decoder.whole):
        found = [matcher.contains(text) for text in text_of([ids[:end] for end in range(len(ids) + 1)])]
        for end in (end for end in range(1, len(ids) + 1) if found[end] and not found[end - 1]):
            assert not any(hopeless(reach, end - start, ids[:start]) for start in range(end))


def test_only_these_characters_are_spelled_by_others():
    """Beyond these planes nothing is composed or decomposed but Chinese characters."""
    others = (c for c in map(chr, range(128, 0x20000)) if not "\ud800" <= c <= "\udfff")
    made = {letter for other in others for letter in normalize(other) if letter.isascii()}
    assert made == set("K;'")  # a grave accent of Greek is folded like every apostrophe


def test_a_name_of_rare_letters_is_given_up_in_time():
    tokenizer = TOKENIZERS["byte-level"][0]
    spelling = Spelling(decoder_for(tokenizer), MatchRule())
    ids = tokenizer(" Zqxj", add_special_tokens=False)["input_ids"]
    reach = Reach(spelling, [("Zqxj",), ("Zqxj", "Z")])
    assert reach.anew.tolist() == [4, 1]
    assert [hopeless(reach, left, []) for left in (4, 3)] == [False, True]
    assert [hopeless(reach, left, ids[:-1]) for left in (2, 1)] == [False, False]
    assert [hopeless(reach, left, ids[:-2]) for left in (2, 1)] == [False, True]
    assert [hopeless(reach, left, [*ids[:-1], ids[1]]) for left in (3, 2)] == [False, True], "Zqx, and Z anew"


def test_tallies_are_the_same_with_fewer_tokens_run():
    model, policy = build("llama"), SamplingPolicy(samples=10, max_new_tokens=8)
    asked = requests(3, answers=("arq", "in a"))
    run = []
    handle = model.register_forward_pre_hook(
        lambda _m, _a, given: run.append(given["input_ids"].numel()), with_kwargs=True
    )
    try:
        sampler = TransformersSampler(model, TOKENIZER)
        kept = sampler.sample(asked, policy, keep_texts=True)
        whole = sum(run)
        run.clear()
        counted = sampler.sample(asked, policy)
    finally:
        handle.remove()
    assert [tally.hits for tally in counted] == [tally.hits for tally in kept]
    assert [tally.tries for tally in counted] == [10] * len(asked)
    assert sum(run) < 0.9 * whole
