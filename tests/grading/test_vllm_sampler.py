"""The vLLM sampler: its counting against a scripted engine, and the whole against transformers (`-m vllm`)."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2

from sftknow.answers import Synonyms
from sftknow.errors import DeviceError, MissingExtraError, ModelError, RecipeError
from sftknow.facts.prompts import statements_for
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.grading.decoding import decoder_for
from sftknow.grading.sampling import SampleRequest
from sftknow.grading.transformers_sampler import load_sampler
from sftknow.grading.vllm_sampler import VLLMSampler, _seed, _stop_strings
from sftknow.records import ModelRef, SamplingPolicy
from sftknow.resources import lab_folder
from sftknow.stats import bucket_of
from tests.grading import fake_vllm
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer(["Café São Tomé Côte d’Ivoire"])


def scripted(texts, monkeypatch):
    """A sampler whose engine gives these texts for every statement."""
    fake_vllm.install(monkeypatch)
    sampler = object.__new__(VLLMSampler)
    sampler.tokenizer, sampler._decoder = TOKENIZER, decoder_for(TOKENIZER)
    sampler._end_ids, sampler._positions, sampler._count = frozenset({1}), 128, 0
    sampler._loop = asyncio.new_event_loop()
    sampler._engine = fake_vllm.FakeEngine(TOKENIZER, texts)
    return sampler


def ask(answers=("Paris",), prompt="The capital is", template=0, fact_id="P36/train/1"):
    return SampleRequest(fact_id=fact_id, template=template, prompt=prompt, answers=answers)


@pytest.mark.parametrize(
    ("answers", "texts", "hits"),
    [
        (("Paris",), [" Paris, of course", " paris", " Lyon", " in Paris"], 2),
        (("Côte d'Ivoire",), [" Côte d’Ivoire.", " Côte d'Ivoire", " Co\u0302te d`Ivoire", " Cote d'Ivoire"], 3),
        (("New  York",), [" New York", " New\nYork City", " NewYork", ""], 2),
        (("Café",), [" Cafe\u0301 there", " Café", " Cafe", " Cafeteria"], 2),
    ],
)
def test_what_a_hit_is_does_not_depend_on_stop_strings(monkeypatch, answers, texts, hits):
    policy = SamplingPolicy(samples=4)
    for keep_texts in (False, True):
        sampler = scripted(texts, monkeypatch)
        (tally,) = sampler.sample([ask(answers)], policy, keep_texts=keep_texts)
        assert (tally.tries, tally.hits) == (4, hits)
        assert tally.texts == (tuple(texts) if keep_texts else None)
        assert all(bool(params.stop) != keep_texts for _, params, _ in sampler._engine.asked)


def test_a_sample_that_ended_early_without_a_hit_is_drawn_to_its_end(monkeypatch):
    # One token brings letter and accent: vLLM sees "Cafe" and stops, but the text reads "Café"; then the answer comes.
    sampler = scripted([" Cafe\u0301 or rather Cafe", " Lyon"], monkeypatch)
    ids = TOKENIZER(" Cafe\u0301 or rather Cafe", add_special_tokens=False)["input_ids"]

    def completion(index, params):
        cut = params.stop and index == 0
        tokens = TOKENIZER(" Cafe\u0301", add_special_tokens=False)["input_ids"] if cut else ids
        return fake_vllm.types.SimpleNamespace(index=index, token_ids=tokens, stop_reason="Cafe" if cut else 1)

    sampler._engine.completion = completion
    sampler._decoder = WholeTokens(sampler._decoder)
    (tally,) = sampler.sample([ask(("Cafe",))], SamplingPolicy(samples=2))
    assert tally.hits == 2
    stops = [params.stop for _, params, _ in sampler._engine.asked]
    assert stops == [["Cafe"], None]
    assert len({params.seed for _, params, _ in sampler._engine.asked}) == 1


class WholeTokens:
    """A decoder that never shows a letter without its accent, as where one token brings both."""

    def __init__(self, decoder):
        self.whole = decoder.whole
        self.settled = lambda continuations: ["" for _ in continuations]


def test_vllm_is_asked_for_plain_sampling_of_the_same_ids(monkeypatch):
    sampler = scripted([" Paris"] * 10, monkeypatch)
    done = []
    asked = [ask(template=i, prompt=f"The capital {i} is") for i in range(5)]
    tallies = sampler.sample(asked, SamplingPolicy(), on_done=done.append)
    assert [tally.template for tally in tallies] == list(range(5))
    assert sum(done) == 5
    for (ids, params, _), request in zip(sampler._engine.asked, asked, strict=True):
        assert ids == TOKENIZER(request.prompt)["input_ids"]
        assert ids.count(TOKENIZER.bos_token_id) == 1
        assert (params.n, params.temperature, params.max_tokens) == (10, 0.7, 32)
        assert (params.top_p, params.top_k, params.min_p) == (1.0, 0, 0.0)
        assert params.stop_token_ids == [1]
    assert len({name for _, _, name in sampler._engine.asked}) == 5


def test_seeds_belong_to_seed_fact_and_template_and_lie_apart():
    first = _seed(ask(), SamplingPolicy())
    assert first == _seed(ask(prompt="another", answers=("x",)), SamplingPolicy(samples=3)) == 3549368317616159898
    others = [_seed(ask(template=i), SamplingPolicy(seed=s)) for i in range(50) for s in range(50)]
    assert len(set(others)) == 2500
    assert np.diff(np.sort(others)).min() > 1000
    assert max(others) < 2**62


def test_stop_strings_are_the_answers_in_both_spellings():
    assert _stop_strings(("Côte d’Ivoire", " Paris ", "Paris")) == ["Côte d’Ivoire", "Côte d'Ivoire", "Paris"]


@pytest.mark.parametrize(
    ("temperature", "said"), [(0.0, "should be"), (0.001, "is"), (2.5, "is"), (float("nan"), "should be")]
)
def test_a_temperature_that_vllm_would_change_is_refused(monkeypatch, temperature, said):
    with pytest.raises(RecipeError, match=f"temperature {said}"):
        scripted([""], monkeypatch).sample([ask()], SamplingPolicy(temperature=temperature))


def test_without_vllm_the_install_command_is_named(monkeypatch, tiny_model):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    with pytest.raises(MissingExtraError, match=r"vllm is not installed; run: pip install 'sftknow\[vllm\]'"):
        VLLMSampler(ModelRef(path=str(tiny_model)))


# ---- with vLLM itself; the CPU build will do

SMALL = {"max_length": 128, "cache_gib": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The lab model with sampling defaults of its own, which grading must not follow."""
    folder = tmp_path_factory.mktemp("vllm") / "model"
    shutil.copytree(lab_folder() / "model", folder)
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"do_sample": True, "temperature": 0.2, "top_k": 2, "top_p": 0.3, "repetition_penalty": 1.7}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return ModelRef(path=str(folder), dtype="float32")


@pytest.fixture(scope="module")
def vllm_sampler(model):
    sampler = VLLMSampler(model, **SMALL)
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def transformers_sampler(model):
    return load_sampler(model, device="cpu")


@pytest.fixture(scope="module")
def statements():
    """All statements of facts of every mastery."""
    topics = load_topics(None)
    facts = load_facts("lab", topics=topics, synonyms=Synonyms.load(None)).facts[5::190]
    return [
        SampleRequest(fact_id=fact.id, template=i, prompt=text, answers=fact.answers)
        for fact in facts
        for i, text in enumerate(statements_for(topics[fact.topic], fact.subject))
    ]


def compare(one, other):
    """Do two samplers hit at the same rates, statement by statement and bucket by bucket?

    Under equal rates, and given a statement's hits of both together, those of one are hypergeometric. So each
    statement's squared deviation over its variance has mean 1, and a bucket's sum of deviations is nearly normal. The
    bucket is that of the fact's hits of both together, which favours neither.

    Returns:
        The p-value of chi-square over statements, and z for each bucket and for all.
    """
    deviations, variances, buckets = [], [], []
    by_fact = {}
    for a, b in zip(one, other, strict=True):
        by_fact.setdefault(a.fact_id, []).append((a, b))
    for pairs in by_fact.values():
        together = sum(a.hits + b.hits for a, b in pairs)
        bucket = bucket_of(together, sum(a.tries + b.tries for a, b in pairs))
        for a, b in pairs:
            n, total, hits = a.tries, a.tries + b.tries, a.hits + b.hits
            variance = n * n * hits * (total - hits) / (total * total * (total - 1))
            if variance:
                deviations.append(a.hits - hits / 2)
                variances.append(variance)
                buckets.append(bucket)
    d, v, of = np.array(deviations), np.array(variances), np.array(buckets)
    z = {int(b): d[of == b].sum() / np.sqrt(v[of == b].sum()) for b in np.unique(of)}
    return float(chi2.sf((d**2 / v).sum(), len(d))), {**z, "all": d.sum() / np.sqrt(v.sum())}


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_hits_agree_with_the_transformers_sampler(vllm_sampler, transformers_sampler, statements):
    policy = SamplingPolicy()
    theirs = vllm_sampler.sample(statements, policy)
    ours = transformers_sampler.sample(statements, policy)
    assert len(statements) > 300
    assert all(tally.tries == 10 for tally in theirs)
    assert [(t.fact_id, t.template) for t in theirs] == [(r.fact_id, r.template) for r in statements]
    p, z = compare(theirs, ours)
    print(f"vLLM against transformers, {len(statements)} statements: p = {p:.3f}, z = {z}")
    assert set(z) >= {1, 2, 3, 4}, "facts of every mastery are compared"
    assert p > 1e-3
    assert max(map(abs, z.values())) < 3.5
    # The comparison can tell: at another temperature it does.
    hotter = transformers_sampler.sample(statements, SamplingPolicy(temperature=1.0, seed=1))
    p, z = compare(theirs, hotter)
    assert p < 1e-3 or max(map(abs, z.values())) > 3.5


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_whole_continuations_have_the_distribution_of_the_transformers_sampler(
    vllm_sampler, transformers_sampler, statements
):
    policy = SamplingPolicy(samples=400, max_new_tokens=4)
    asked = statements[7::80]
    theirs = vllm_sampler.sample(asked, policy, keep_texts=True)
    ours = transformers_sampler.sample(asked, policy, keep_texts=True)
    for one, other in zip(theirs, ours, strict=True):
        counts = Counter(one.texts), Counter(other.texts)
        common = [text for text in counts[0] | counts[1] if counts[0][text] + counts[1][text] >= 10]
        table = np.array([[c[text] for text in common] + [400 - sum(c[text] for text in common)] for c in counts])
        table = table[:, table.sum(axis=0) > 0]
        expected = table.sum(axis=0) / 2
        statistic = ((table - expected) ** 2 / expected).sum()
        assert chi2.sf(statistic, table.shape[1] - 1) > 1e-4, (one.fact_id, common)


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_seeds_decide_and_stop_strings_do_not(vllm_sampler, statements):
    asked = statements[::4]
    first = vllm_sampler.sample(asked, SamplingPolicy())
    assert vllm_sampler.sample(asked, SamplingPolicy()) == first
    kept = vllm_sampler.sample(asked, SamplingPolicy(), keep_texts=True)
    assert [tally.hits for tally in kept] == [tally.hits for tally in first]
    assert all(len(tally.texts) == 10 for tally in kept)
    alone = vllm_sampler.sample(asked[9:10], SamplingPolicy(), keep_texts=True)
    assert alone == kept[9:10]
    other = vllm_sampler.sample(asked, SamplingPolicy(seed=1), keep_texts=True)
    assert [tally.texts for tally in other] != [tally.texts for tally in kept]
    texts = [text for tally in kept for text in tally.texts]
    assert not any("</s>" in text or "<|endoftext|>" in text for text in texts)


@pytest.mark.vllm
def test_vllm_sees_the_ids_of_the_transformers_path(vllm_sampler, transformers_sampler, statements, monkeypatch):
    seen = {}
    generate = vllm_sampler._engine.generate

    async def noting(prompt, params, request_id):
        async for output in generate(prompt, params, request_id=request_id):
            seen[tuple(output.prompt_token_ids)] = prompt["prompt_token_ids"]
            yield output

    monkeypatch.setattr(vllm_sampler._engine, "generate", noting)
    vllm_sampler.sample(statements[:40], SamplingPolicy(samples=1, max_new_tokens=1))
    tokenizer = transformers_sampler.tokenizer
    expected = {tuple(tokenizer(request.prompt)["input_ids"]) for request in statements[:40]}
    assert set(seen) == expected
    assert all(list(ids) == given for ids, given in seen.items())
    assert all(ids.count(tokenizer.bos_token_id) == 1 for ids in seen)


@pytest.mark.vllm
def test_what_vllm_cannot_do_is_said(model, tmp_path):
    with pytest.raises(DeviceError, match="the vLLM that is installed runs on a CPU, not on cuda"):
        VLLMSampler(model, device="cuda", **SMALL)
    with pytest.raises(DeviceError, match="auto, cpu or cuda, not 'tpu'"):
        VLLMSampler(model, device="tpu", **SMALL)
    with pytest.raises(RecipeError, match=r"does not take these arguments.*no_such_argument"):
        VLLMSampler(model, **SMALL, arguments={"no_such_argument": 1})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        VLLMSampler(ModelRef(path=str(tmp_path / "empty")), **SMALL)


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_the_command_grades_with_vllm(tmp_path):
    facts = load_facts("lab", topics=load_topics(None), synonyms=Synonyms.load(None)).facts[:3]
    file = tmp_path / "facts.jsonl"
    rows = [{"topic": f.topic, "subject": f.subject, "object": f.object} for f in facts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["-m", "sftknow.cli.main", "grade", "lab", "--facts", str(file), "--out", str(tmp_path / "graded")]
    done = subprocess.run(
        [sys.executable, *command, "--sampler", "vllm", "--samples", "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "graded data set" in done.stdout
    assert "INFO" not in done.stdout
    manifest = json.loads((tmp_path / "graded" / "sftknow.json").read_text())
    assert '"sampler": "vllm"' in json.dumps(manifest)
