import pytest
from tokenizers import processors

from sftknow.errors import FactsError, ModelError, RecipeError
from sftknow.grading.encoding import encode_statements
from sftknow.grading.sampling import SampleRequest
from sftknow.records import SamplingPolicy
from tests.tiny import tiny_tokenizer

POLICY = SamplingPolicy(max_new_tokens=8)


def request(prompt):
    return SampleRequest(fact_id="P36/train/1", template=3, prompt=prompt, answers=("Paris",))


def test_a_statement_has_the_tokenizers_own_special_tokens_but_no_end_token():
    tokenizer = tiny_tokenizer()
    plain = tokenizer("The capital of", add_special_tokens=False)["input_ids"]
    options = {"ends": frozenset({1}), "positions": None}
    assert encode_statements(tokenizer, [request("The capital of")], POLICY, **options) == [[0, *plain]]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert encode_statements(tokenizer, [request("The capital of")], POLICY, **options) == [[0, *plain]]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert encode_statements(tokenizer, [request("The capital of")], POLICY, **options) == [plain]
    with pytest.raises(FactsError, match=r"statement 3 of P36/train/1 has no token: ''"):
        encode_statements(tokenizer, [request("")], POLICY, **options)


def test_a_statement_that_leaves_no_room_is_refused():
    tokenizer = tiny_tokenizer()
    count = len(tokenizer("The capital of")["input_ids"])
    asked = [request("The capital of")]
    assert encode_statements(tokenizer, asked, POLICY, ends=frozenset(), positions=count + 8)
    with pytest.raises(ModelError, match=f"has {count} tokens, and with 8 new ones exceeds"):
        encode_statements(tokenizer, asked, POLICY, ends=frozenset(), positions=count + 7)


@pytest.mark.parametrize("change", [{"temperature": 0.0}, {"temperature": float("nan")}, {"samples": 0}])
def test_a_policy_that_draws_nothing_is_refused(change):
    with pytest.raises(RecipeError):
        SamplingPolicy(**change)
