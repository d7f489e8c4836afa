"""The filter never passes over an answer: against decoding and searching every continuation at every step."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sftknow.answers import Matcher, MatchRule
from sftknow.grading.completions import CompletionFilter
from sftknow.grading.decoding import decoder_for
from tests.grading.test_decoding import TOKENIZERS

ANSWERS = st.text(st.sampled_from("aeisnr .'`’é日\u0301AS"), min_size=1, max_size=4).filter(lambda text: text.strip())


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), answers=st.lists(ANSWERS, min_size=1, max_size=3), exact_case=st.booleans())
def test_an_answer_that_appears_was_let_through(name, data, answers, exact_case):
    tokenizer = TOKENIZERS[name][0]
    rule = MatchRule(case_sensitive=exact_case)
    matcher = Matcher(answers, rule)
    decoder = decoder_for(tokenizer)
    sieve = CompletionFilter(decoder, rule)
    endings = sieve.endings([answers])
    words = st.sampled_from([*answers, " is", "a", "é", "e\u0301", " ", "S", "’"])
    ids = [t for word in data.draw(st.lists(words)) for t in tokenizer(word, add_special_tokens=False)["input_ids"]]
    settled = decoder.settled([ids[:end] for end in range(len(ids) + 1)])
    for step, token in enumerate(ids):
        before = np.array([ids[step - 1] if step else 0])
        if matcher.contains(settled[step + 1]) and not matcher.contains(settled[step]):
            assert sieve.passes(np.array([token]), before, endings)[0]
    # At the end of a continuation what was open is settled; that counts only where the last token was open.
    whole = decoder.whole([ids])[0]
    if ids and matcher.contains(whole) and not matcher.contains(settled[-1]):
        assert sieve.open(np.array(ids[-1:]))[0]


def test_most_tokens_are_passed_over():
    tokenizer = TOKENIZERS["byte-level"][0]
    sieve = CompletionFilter(decoder_for(tokenizer), MatchRule())
    endings = sieve.endings([["Paris", "Bonn"]])
    tokens = np.array([tokenizer.convert_tokens_to_ids(token) for token in "snabcdefg"])
    assert sieve.passes(tokens, tokens, np.repeat(endings, len(tokens), axis=0)).tolist() == [True] * 2 + [False] * 7


def test_ids_beyond_the_vocabulary_bring_nothing():
    tokenizer = TOKENIZERS["byte-level"][0]
    sieve = CompletionFilter(decoder_for(tokenizer), MatchRule())
    beyond = np.array([len(tokenizer) + 50])
    assert not sieve.passes(beyond, beyond, sieve.endings([["Paris"]]))[0]
