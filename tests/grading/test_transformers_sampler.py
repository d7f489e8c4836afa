"""The fast sampler against a slow one, against transformers' own `generate`, and against exact enumeration."""

import shutil
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import chi2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sftknow.errors import CheckpointError, DeviceError, FactsError, ModelError, RecipeError
from sftknow.grading.sampling import SampleRequest, uniforms
from sftknow.grading.transformers_sampler import TransformersSampler, load_sampler
from sftknow.records import ModelRef, SamplingPolicy
from tests.grading.test_decoding import sentence_piece
from tests.tiny import tiny_facts, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
COMMON = {"vocab_size": len(TOKENIZER), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = {**COMMON, **SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 96}


def spread(model, *, scale=8.0):
    """A random model's logits, drawn apart so that some tokens are likely and rows are shared."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    return model.eval()


def build(kind):
    torch.manual_seed(0)
    if kind == "llama":
        return spread(LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=False)))
    if kind == "qwen2":
        return spread(Qwen2ForCausalLM(Qwen2Config(**GROUPED, tie_word_embeddings=False)))
    if kind == "mistral":  # a window that the continuations outgrow
        return spread(MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=7, tie_word_embeddings=False)))
    if kind == "gpt-neox":
        config = GPTNeoXConfig(**COMMON, **SHAPE, max_position_embeddings=96, tie_word_embeddings=False)
        return spread(GPTNeoXForCausalLM(config))
    config = GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=96, tie_word_embeddings=False)
    return spread(GPT2LMHeadModel(config))


@pytest.fixture(scope="module")
def llama():
    return build("llama")


def requests(count=6, *, answers=("a", "ar")):
    """Statements of several lengths, some with a common beginning."""
    return [
        SampleRequest(fact_id=fact.id, template=template, prompt=fact.question[: 9 + 4 * template], answers=answers)
        for fact in tiny_facts(count)
        for template in range(3)
    ]


@torch.no_grad()
def one_by_one(model, tokenizer, request, policy):
    """Texts by the plain definition: every sample alone, the whole sequence through the model for each token."""
    texts = []
    for stream in uniforms(request, policy):
        ids, new = tokenizer(request.prompt)["input_ids"], []
        for uniform in stream:
            logits = model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].double()
            ends = torch.softmax(logits / policy.temperature, -1).cumsum(-1)
            token = int(torch.searchsorted(ends, uniform, right=True))
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
        texts.append(tokenizer.decode(new, skip_special_tokens=True))
    return tuple(texts)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gpt-neox", "gpt-2"])
def test_every_sample_is_what_it_would_be_alone(kind):
    model = build(kind)
    asked = requests(3)
    policy = SamplingPolicy(samples=5, max_new_tokens=8, seed=3)
    tallies = TransformersSampler(model, TOKENIZER, max_rows=20).sample(asked, policy, keep_texts=True)
    for request, tally in zip(asked, tallies, strict=True):
        assert tally.texts == one_by_one(model, TOKENIZER, request, policy)
        assert (tally.fact_id, tally.template, tally.tries) == (request.fact_id, request.template, 5)
        assert tally.hits == sum("a" in text for text in tally.texts)


def test_counts_are_the_same_whether_texts_are_kept_and_whatever_the_batch(llama):
    asked, policy = requests(4), SamplingPolicy(samples=10, max_new_tokens=8)
    expected = TransformersSampler(llama, TOKENIZER).sample(asked, policy)
    assert 0 < sum(tally.hits for tally in expected) < 10 * len(asked)
    assert all(tally.texts is None for tally in expected)
    kept = TransformersSampler(llama, TOKENIZER).sample(asked, policy, keep_texts=True)
    assert [tally.hits for tally in kept] == [tally.hits for tally in expected]
    shuffled = [asked[i] for i in np.random.default_rng(0).permutation(len(asked))]
    for rows in (1, 35):
        for order in (shuffled, asked[7:8]):
            again = TransformersSampler(llama, TOKENIZER, max_rows=rows).sample(order, policy)
            by_request = {(tally.fact_id, tally.template): tally for tally in again}
            assert [(t.fact_id, t.template) for t in again] == [(r.fact_id, r.template) for r in order]
            assert all(t == by_request.get((t.fact_id, t.template), t) for t in expected)


def test_a_longer_run_of_samples_begins_with_the_shorter(llama):
    asked = requests(2)
    few, many = (
        TransformersSampler(llama, TOKENIZER).sample(
            asked, SamplingPolicy(samples=n, max_new_tokens=5), keep_texts=True
        )
        for n in (3, 9)
    )
    assert [tally.texts for tally in few] == [tally.texts[:3] for tally in many]


def test_another_seed_gives_other_samples(llama):
    one, other = (
        TransformersSampler(llama, TOKENIZER).sample(requests(2), SamplingPolicy(seed=s), keep_texts=True)
        for s in (0, 1)
    )
    assert all(a.texts != b.texts for a, b in zip(one, other, strict=True))


class Passes:
    """Counts the tokens that go through a model, and the most rows at once."""

    def __init__(self, model):
        self.shapes = []
        self.handle = model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, _model, _args, kwargs):
        self.shapes.append(tuple(kwargs["input_ids"].shape))

    @property
    def tokens(self):
        return sum(rows * new for rows, new in self.shapes)


def test_equal_samples_share_rows_and_prompts_are_run_once(llama):
    asked = requests(1)[:1]
    sampler = TransformersSampler(llama, TOKENIZER)
    passes = Passes(llama)
    try:
        cold = SamplingPolicy(samples=50, temperature=1e-4, max_new_tokens=12)
        sampler.sample(asked, cold, keep_texts=True)
    finally:
        passes.handle.remove()
    prompt = len(TOKENIZER(asked[0].prompt)["input_ids"])
    # One row, filled up until a pass has as many tokens as it has at least.
    assert passes.shapes == [(-(-16 // prompt), prompt)] + [(16, 1)] * 11


def test_a_beginning_that_statements_share_is_run_once(llama):
    prompts = ["Which country is Arden located", "Which country is Belmora located", "Which country is Cestria located"]
    asked = [SampleRequest(fact_id=str(i), template=0, prompt=p, answers=("a",)) for i, p in enumerate(prompts * 8)]
    lengths = [len(TOKENIZER(request.prompt)["input_ids"]) for request in asked]
    sampler = TransformersSampler(llama, TOKENIZER)
    passes = Passes(llama)
    try:
        sampler.sample(asked, SamplingPolicy(samples=1, max_new_tokens=1))
    finally:
        passes.handle.remove()
    assert passes.tokens < sum(lengths)


def test_rows_leave_with_their_hit(llama):
    asked = requests(2, answers=tuple("abcdefghijklmnopqrstuvwxyz"))
    passes = {}
    for keep in (False, True):
        passes[keep] = Passes(llama)
        try:
            TransformersSampler(llama, TOKENIZER).sample(asked, SamplingPolicy(), keep_texts=keep)
        finally:
            passes[keep].handle.remove()
    assert passes[False].tokens < passes[True].tokens / 2


def test_progress_counts_every_statement_once(llama):
    reported = []
    TransformersSampler(llama, TOKENIZER, max_rows=30).sample(requests(), SamplingPolicy(), on_done=reported.append)
    assert sum(reported) == len(requests())
    assert all(n > 0 for n in reported)
    assert len(reported) > 1


WORDS = ["<s>", "</s>", "north", "east", "south", "west"]


def word_tokenizer(*, closes=False):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="north"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if closes else "<s> $A", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def compass():
    """A model of six tokens whose continuations can all be listed."""
    torch.manual_seed(1)
    config = LlamaConfig(**{**GROUPED, "vocab_size": len(WORDS), "pad_token_id": None}, tie_word_embeddings=False)
    return spread(LlamaForCausalLM(config), scale=12.0)


@torch.no_grad()
def enumerated(model, prompt_ids, length, temperature):
    """Probability of every continuation, as tuples of ids that stop at the end token."""
    probability = Counter()
    tails = list(product(range(len(WORDS)), repeat=length))
    ids = torch.tensor([[*prompt_ids, *tail] for tail in tails])
    chances = torch.softmax(model(ids).logits.double() / temperature, -1)[:, len(prompt_ids) - 1 : -1]
    steps = chances.gather(2, ids[:, len(prompt_ids) :, None])[..., 0]
    for tail, chance in zip(tails, steps.prod(-1).tolist(), strict=True):
        # A continuation that ends early is met with every tail; the tails' probabilities sum to one.
        probability[tail[: tail.index(1) + 1] if 1 in tail else tail] += chance
    return probability


def chi_square(observed, expected):
    """Statistic and 99.9 % point over cells with at least five expected, the rest pooled."""
    cells = [(observed[key], count) for key, count in expected.items() if count >= 5]
    rest = sum(observed.values()) - sum(o for o, _ in cells), sum(expected.values()) - sum(e for _, e in cells)
    cells += [rest] if rest[1] >= 5 else []
    return sum((o - e) ** 2 / e for o, e in cells), chi2.ppf(0.999, len(cells) - 1)


def test_continuations_have_the_distribution_of_plain_generate(compass):
    tokenizer, count = word_tokenizer(), 6000
    request = SampleRequest(fact_id="f", template=0, prompt="north east", answers=("nowhere",))
    policy = SamplingPolicy(samples=count, temperature=0.7, max_new_tokens=3, seed=11)
    (tally,) = TransformersSampler(compass, tokenizer).sample([request], policy, keep_texts=True)
    mine = Counter(tally.texts)
    prompt = tokenizer(request.prompt)["input_ids"]
    torch.manual_seed(11)
    generated = compass.generate(
        torch.tensor([prompt]), do_sample=True, temperature=0.7, top_k=0, top_p=1.0, max_new_tokens=3,
        num_return_sequences=count, pad_token_id=1,
    )  # fmt: skip
    theirs = Counter(tokenizer.batch_decode(generated[:, len(prompt) :], skip_special_tokens=True))
    expected = Counter()
    for ids, probability in enumerated(compass, prompt, 3, 0.7).items():
        expected[tokenizer.decode(list(ids), skip_special_tokens=True)] += count * probability
    assert sum(expected.values()) == pytest.approx(count)
    assert len([key for key in expected if expected[key] >= 5]) > 20
    for observed in (mine, theirs):
        statistic, bound = chi_square(observed, expected)
        assert statistic < bound
    # The same test tells a temperature of 0.8 from 0.7, so it is able to fail.
    warmer = SamplingPolicy(samples=count, temperature=0.8, max_new_tokens=3, seed=11)
    (other,) = TransformersSampler(compass, tokenizer).sample([request], warmer, keep_texts=True)
    statistic, bound = chi_square(Counter(other.texts), expected)
    assert statistic > bound


def test_rates_agree_with_exact_enumeration(compass):
    tokenizer, count = word_tokenizer(), 4000
    asked = [
        SampleRequest(fact_id=f"{prompt}/{answer}", template=0, prompt=prompt, answers=(answer,))
        for prompt in ("north", "south west", "east east north")
        for answer in ("west", "south south", "east")
    ]
    policy = SamplingPolicy(samples=count, temperature=0.7, max_new_tokens=3, seed=2)
    for request, tally in zip(asked, TransformersSampler(compass, tokenizer).sample(asked, policy), strict=True):
        rate = sum(
            probability
            for ids, probability in enumerated(compass, tokenizer(request.prompt)["input_ids"], 3, 0.7).items()
            if request.answers[0] in tokenizer.decode(list(ids), skip_special_tokens=True)
        )
        assert abs(tally.hits - count * rate) <= 4 * (count * rate * (1 - rate)) ** 0.5 + 1


def test_an_end_token_after_the_prompt_is_taken_off(compass):
    request = SampleRequest(fact_id="f", template=0, prompt="north east", answers=("west",))
    policy = SamplingPolicy(samples=20, max_new_tokens=4)
    plain, closing = (
        TransformersSampler(compass, word_tokenizer(closes=closes)).sample([request], policy, keep_texts=True)
        for closes in (False, True)
    )
    assert plain == closing


def test_bfloat16_samples_like_float32_within_chance():
    model = build("llama")
    asked, policy = requests(12), SamplingPolicy(samples=10, max_new_tokens=8)
    full = sum(tally.hits for tally in TransformersSampler(model, TOKENIZER).sample(asked, policy))
    half = sum(tally.hits for tally in TransformersSampler(model.bfloat16(), TOKENIZER).sample(asked, policy))
    assert abs(full - half) < 0.1 * 10 * len(asked)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt-2"])
def test_the_models_own_sampling_defaults_are_ignored(kind):
    model = build(kind)
    asked, policy = requests(2), SamplingPolicy(samples=6, max_new_tokens=8)
    expected = TransformersSampler(model, TOKENIZER).sample(asked, policy, keep_texts=True)
    for name, value in {
        "do_sample": True, "top_k": 1, "top_p": 0.1, "temperature": 3.0, "repetition_penalty": 9.0, "max_new_tokens": 2,
    }.items():  # fmt: skip
        setattr(model.generation_config, name, value)
    assert TransformersSampler(model, TOKENIZER).sample(asked, policy, keep_texts=True) == expected


def test_any_of_several_end_tokens_ends_a_sample(compass):
    request = SampleRequest(fact_id="f", template=0, prompt="north east", answers=("nowhere",))
    policy = SamplingPolicy(samples=400, max_new_tokens=5)
    before = compass.generation_config.eos_token_id
    try:
        compass.generation_config.eos_token_id = [1, WORDS.index("south")]
        (tally,) = TransformersSampler(compass, word_tokenizer()).sample([request], policy, keep_texts=True)
    finally:
        compass.generation_config.eos_token_id = before
    (plain,) = TransformersSampler(compass, word_tokenizer()).sample([request], policy, keep_texts=True)
    assert tally.texts == tuple(text.split("south")[0].strip() for text in plain.texts)
    assert tally.texts != plain.texts


def test_keeping_texts_of_byte_fallback_tokens_gives_the_same_counts():
    # Hits complete within runs of bytes, runs break, and end tokens close them.
    tokenizer = sentence_piece()
    torch.manual_seed(4)
    config = LlamaConfig(**{**GROUPED, "vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2})
    model = spread(LlamaForCausalLM(config), scale=12.0)
    byte = {value: tokenizer.convert_tokens_to_ids(f"<0x{value:02X}>") for value in range(256)}
    liked = [*(byte[value] for value in "é日".encode()), tokenizer.convert_tokens_to_ids("is"), 2]

    def prefer(_module, _inputs, output):
        output.logits[..., liked] += 12.0
        return output

    model.register_forward_hook(prefer)
    asked = [
        SampleRequest(fact_id=f"{i}", template=0, prompt="Paris is in" + "." * i, answers=answers)
        for i, answers in enumerate([("é",), ("日",), ("éis", "is日"), ("日", "éé")] * 6)
    ]
    policy = SamplingPolicy(samples=20, max_new_tokens=8, seed=1)
    sampler = TransformersSampler(model, tokenizer)
    kept = sampler.sample(asked, policy, keep_texts=True)
    counted = [
        sum(any(answer in text for answer in request.answers) for text in tally.texts)
        for request, tally in zip(asked, kept, strict=True)
    ]
    assert [tally.hits for tally in kept] == counted
    assert [tally.hits for tally in sampler.sample(asked, policy)] == counted
    assert 0 < sum(counted) < 20 * len(asked)


def test_logits_that_are_not_finite_are_one_clear_line(llama):
    broken = build("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[3, 5] = float("nan")
    with pytest.raises(ModelError, match="logits are not finite") as caught:
        TransformersSampler(broken, TOKENIZER)
    assert "\n" not in str(caught.value)
    # Also where they turn up later only, for some statement.
    sampler = TransformersSampler(llama, TOKENIZER)
    handle = llama.register_forward_hook(_not_finite)
    try:
        with pytest.raises(ModelError, match="logits are not finite"):
            sampler.sample(requests(1), SamplingPolicy())
    finally:
        handle.remove()


def _not_finite(_model, _inputs, output):
    output.logits[..., 7] = float("nan")
    return output


@pytest.mark.gpu
def test_a_gpu_samples_like_the_cpu():
    model = build("llama")
    asked, policy = requests(12), SamplingPolicy(samples=10, max_new_tokens=16)
    cpu = TransformersSampler(model, TOKENIZER).sample(asked, policy)
    gpu = TransformersSampler(model.cuda(), TOKENIZER).sample(asked, policy)
    differing = sum(abs(a.hits - b.hits) for a, b in zip(cpu, gpu, strict=True))
    assert differing < 0.01 * 10 * len(asked)


def test_no_request_is_no_work(llama):
    assert TransformersSampler(llama, TOKENIZER).sample([], SamplingPolicy()) == []


def test_what_cannot_be_sampled_is_refused(llama):
    sampler, asked = TransformersSampler(llama, TOKENIZER), requests(1)
    for nothing in ({"temperature": 0}, {"samples": 0}, {"max_new_tokens": 0}):
        with pytest.raises(RecipeError, match="should be greater than"):
            sampler.sample(asked, SamplingPolicy(**nothing))
    with pytest.raises(ModelError, match="exceeds the model's 96 positions"):
        sampler.sample(asked, SamplingPolicy(max_new_tokens=96))
    empty = SampleRequest(fact_id="f", template=4, prompt="", answers=("a",))
    bare = tiny_tokenizer()
    bare.backend_tokenizer.post_processor = processors.ByteLevel()
    with pytest.raises(FactsError, match="statement 4 of f has no token"):
        TransformersSampler(llama, bare).sample([empty], SamplingPolicy())


def test_a_checkpoint_is_loaded_in_the_dtype_asked_for(tiny_model):
    sampler = load_sampler(ModelRef(path=str(tiny_model), dtype="bfloat16"), device="cpu")
    assert sampler.model.dtype == torch.bfloat16
    assert load_sampler(ModelRef(path=str(tiny_model))).model.dtype == torch.float32
    assert not sampler.model.training


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "lm_head" not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load_sampler(ModelRef(path=str(folder)), device="cpu")
    (folder / "model.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        load_sampler(ModelRef(path=str(folder)), device="cpu")


def test_what_cannot_be_loaded_says_so(tiny_model, tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_sampler(ModelRef(path=str(tmp_path)))
    with pytest.raises(ModelError, match="'float99' is no dtype"):
        load_sampler(ModelRef(path=str(tiny_model), dtype="float99"))
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no device 'cuda'"):
            load_sampler(ModelRef(path=str(tiny_model)), device="cuda")
