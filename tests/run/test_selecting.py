"""Selecting from people's own SFT data: what is asked, the buckets, the draw, the data set, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import sftknow
from sftknow.cli.main import main
from sftknow.errors import FactsError, ModelError, RunError
from sftknow.facts.sources import rank_of
from sftknow.grading.sampling import SampleRequest
from sftknow.models.chat import chat_text
from sftknow.records import SampleTally, SamplingPolicy
from sftknow.run import sft_asking
from sftknow.run.selecting import select
from sftknow.selecting.options import SelectOptions
from sftknow.selecting.words import markdown, text
from tests.tiny import tiny_llama, tiny_tokenizer

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


class Answering:
    """A model whose knowledge is known: it says to each text what a function of its last question says."""

    def __init__(self, answers: Callable[[str, int], str]) -> None:
        self.answers, self.prompts, self.calls = answers, [], 0
        self.model: Any = None

    def sample(
        self,
        requests: Sequence[SampleRequest],
        policy: SamplingPolicy,
        *,
        keep_texts: bool = False,
        on_done: Any = None,
    ) -> list[SampleTally]:
        self.calls += 1
        self.prompts += [request.prompt for request in requests]
        said = [tuple(self.answers(r.prompt, i) for i in range(policy.samples)) for r in requests]
        if on_done:
            on_done(len(requests))
        return [
            SampleTally(fact_id=r.fact_id, template=r.template, tries=len(texts), hits=0, texts=texts)
            for r, texts in zip(requests, said, strict=True)
        ]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTKNOW_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def asks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, int], str]], Answering]:
    """Puts a model of known knowledge in the place of the one that would be loaded."""

    def put(answers: Callable[[str, int], str]) -> Answering:
        model = Answering(answers)
        monkeypatch.setattr(sft_asking, "load_sampler", lambda *_, **__: model)
        return model

    return put


def written(folder: Path, rows: Sequence[dict[str, Any]], name: str = "data.jsonl") -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def last_number(prompt: str) -> int:
    """What the last question of a prompt asks for."""
    return int(prompt.strip().rsplit("n", 1)[1].rstrip("?:<a> \n"))


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"n{i}?", "completion": f"word{i}", "own": i} for i in range(count)]


def knows(prompt: str, i: int) -> str:
    """Asked after solved examples: surely wrong below 4, unsure below 8, then right more and more often."""
    number = last_number(prompt)
    if "\n\n" not in prompt:
        return "Another question?"
    if number < 4:
        return f" never\nword{number}"
    if number < 8:
        return f" guess{i}"
    return f" word{number}" if i < number - 7 else " other"


def test_solved_examples_take_the_format_out(tiny_model: Path, tmp_path: Path, asks: Any) -> None:
    asked = asks(knows)
    result = select(
        written(tmp_path, numbered(18)),
        str(tiny_model),
        options=SelectOptions(size=6, shots=2),
        say=lambda line: None,
    )
    assert result.form == "solved examples first"
    assert result.rates["plain"] == 0
    assert [example.bucket for example in result.examples] == [0] * 8 + [1, 1, 2, 2, 2, 3, 3, 4, 4, 4]
    assert [example.contradicts for example in result.examples] == [True] * 4 + [False] * 14
    assert {example.says for example in result.contradicting} == {"never"}  # a later line is no answer
    assert [e.bucket for e in result.drawn] == [1, 1, 2, 2, 3, 3]
    assert "8 of 18 short answers teach what" in result.sentence
    assert "4 of them against what it surely says" in result.sentence
    assert result.headline() == result.sentence
    assert "never" in text(result)
    assert "| 0 | never right | 8 | 0 |" in markdown(result)
    for prompt in asked.prompts:
        number = last_number(prompt)
        assert f"word{number}\n" not in prompt  # no example's own answer stands before it
    assert sftknow.SelectResult is type(result)
    assert len(result.to_pandas()) == 18


def test_plain_counts_where_solved_examples_do_not_help(tiny_model: Path, tmp_path: Path, asks: Any) -> None:
    asks(lambda prompt, i: f"word{last_number(prompt)}" if "\n\n" not in prompt else "?")
    result = select(written(tmp_path, numbered(12)), str(tiny_model), say=lambda line: None)
    assert (result.form, result.rates) == ("plain", {"solved examples first": 0.0, "plain": 1.0})
    assert {example.bucket for example in result.examples} == {4}
    assert len(result.drawn) == 12  # buckets 1 to 3 are empty, and 4 fills up
    assert "(there are no more; 240 were asked for)" in result.sentence


def test_what_is_said_to_everything_contradicts_nothing(tiny_model: Path, tmp_path: Path, asks: Any) -> None:
    asks(lambda prompt, i: "County." if last_number(prompt) < 9 else f"no{last_number(prompt)}")
    result = select(written(tmp_path, numbered(12)), str(tiny_model), say=lambda line: None)
    assert [example.says for example in result.contradicting] == ["no9", "no10", "no11"]
    assert any("'County.' surely to 9 of them" in note for note in result.notes)
    assert any("hardly ever right" in note for note in result.notes)


def test_what_is_drawn(tiny_model: Path, tmp_path: Path, asks: Any) -> None:
    asked = asks(knows)
    data = written(tmp_path, numbered(18))

    def drawn(**options: Any) -> list[int]:
        found = select(data, str(tiny_model), options=SelectOptions(shots=2, **options), say=lambda line: None)
        return [example.bucket for example in found.drawn]

    assert drawn(size=9) == [1, 1, 2, 2, 2, 3, 3, 4, 4]
    once = asked.calls
    assert drawn(size=5, buckets=(0, 4)) in ([0, 0, 0, 4, 4], [0, 0, 4, 4, 4])
    assert drawn(size=100, buckets=(3,)) == [3, 3]
    assert asked.calls == once  # another draw asks nothing again


def test_a_chat_model_is_asked_in_its_template(tmp_path: Path, asks: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "<s>" + CHAT
    model = tiny_llama(tmp_path / "chat", tokenizer)
    rows = [
        {"messages": [{"role": "user", "content": f"n{i}"}, {"role": "assistant", "content": f"word{i}"}]}
        for i in range(12)
    ]
    asked = asks(lambda prompt, i: f"I say\nword{last_number(prompt)}")
    result = select(written(tmp_path, rows), str(model), options=SelectOptions(shots=1), say=lambda line: None)
    assert {example.hits for example in result.examples} == {20}  # two sets of solved examples, ten samples of each
    assert "<user>n3<a>" in asked.prompts  # without the BOS that the tokenizer adds
    assert any(p.endswith("<user>n3<a>") and "<assistant>word" in p for p in asked.prompts)


def test_a_template_that_refuses(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ModelError, match="chat template refuses messages of system, user: no system role"):
        chat_text(tokenizer, [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_long_answers_and_what_trainers_load(tiny_model: Path, tmp_path: Path, asks: Any) -> None:
    """Short and long answers in one data set; the folder loads with the real clients and trains."""
    rows = numbered(12) + [{"prompt": f"n{i}?", "completion": f"one two three four five six {i}"} for i in range(5)]
    rows.append({"prompt": "n1?", "completion": "long " * 200, "own": None})
    asks(knows).model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    out = tmp_path / "out"
    assert not out.exists()
    result = select(
        written(tmp_path, rows),
        str(tiny_model),
        out=out,
        options=SelectOptions(size=6, shots=2),
        say=lambda line: None,
    )
    assert [e.bucket for e in result.examples if e.way == "probability"].count(2) == 1
    assert all(e.logprob is not None and e.logprob < 0 for e in result.examples if e.way == "probability")
    assert result.left_out == {"longer than the model's context": 1}
    draw = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "hf"))
    assert len(draw) == len(result.drawn) == 6
    assert {"prompt", "completion", "own", "sftknow_bucket"} <= set(draw.column_names)
    buckets = load_dataset(str(out), "buckets", cache_dir=str(tmp_path / "hf"))
    assert sum(map(len, buckets.values())) == len(result.examples) == 17
    assert {row["sftknow_says"] for row in buckets["bucket_0"]} >= {"never"}
    arguments = SFTConfig(
        output_dir=str(tmp_path / "sft"), max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        save_strategy="no", bf16=False, dataset_num_proc=None,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    SFTTrainer(model, args=arguments, train_dataset=draw, processing_class=tokenizer).train()
    # What is there is replaced by the same command, and by nothing that would lose somebody's file.
    select(written(tmp_path, rows), str(tiny_model), out=out, options=SelectOptions(size=1), say=lambda line: None)
    assert len(load_dataset(str(out), split="train", cache_dir=str(tmp_path / "hf2"))) == 1
    (out / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match=r"mine\.txt, which would be lost"):
        select(written(tmp_path, rows), str(tiny_model), out=out, say=lambda line: None)


def test_facts_by_their_statements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lab's model and facts, from the command line, for real."""
    out = tmp_path / "out"
    command = ["select", "lab", "--model", "lab", "--limit", "24", "--samples", "2", "--templates", "3", "--size", "6"]
    assert main([*command, "--out", str(out), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["form"] == "statements"
    assert len(found["examples"]) == 24
    assert {e["tries"] for e in found["examples"]} == {6}
    assert len({e["bucket"] for e in found["examples"]}) >= 3
    unknown = [e for e in found["examples"] if e["bucket"] == 0]
    assert all(e["says"] for e in unknown)
    draw = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "hf"))
    assert draw[0]["prompt"].startswith("<|question|> ")
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Train on 6 of 24 examples")
    assert "train_dataset=load_dataset(" in said


def test_killed_and_started_again_gives_the_same(
    tiny_model: Path, tmp_path: Path, asks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft_asking, "_BLOCK", 5)
    data, options = written(tmp_path, numbered(18)), SelectOptions(shots=2)

    last = max(range(18), key=lambda number: rank_of(f"{number + 1}", 0))  # of the order in which they are asked

    def stopping(prompt: str, i: int) -> str:
        if last_number(prompt) == last:
            raise KeyboardInterrupt
        return knows(prompt, i)

    asks(knows)
    whole = select(data, str(tiny_model), options=options, say=lambda line: None)
    monkeypatch.setenv("SFTKNOW_CACHE", str(tmp_path / "third"))
    asks(stopping)
    with pytest.raises(KeyboardInterrupt):
        select(data, str(tiny_model), options=options, out=tmp_path / "out", say=lambda line: None)
    assert not (tmp_path / "out").exists()
    again = asks(knows)
    assert select(data, str(tiny_model), options=options, say=lambda line: None) == whole
    assert 0 < again.calls < 4


def test_other_columns_synonyms_and_labels(tiny_model: Path, tmp_path: Path, asks: Any) -> None:
    asks(lambda prompt, i: "USA" if "n1" in prompt.rsplit("\n\n", 1)[-1] else "no")
    rows = [{"q": f"n{i}?", "a": ["No.", "United States of America"][i % 2]} for i in range(12)]
    file = tmp_path / "synonyms.json"
    file.write_text(json.dumps({"United States of America": ["USA"]}))
    result = select(
        written(tmp_path, rows),
        str(tiny_model),
        columns="prompt=q,completion=a",
        synonyms=file,
        options=SelectOptions(shots=1),
        say=lambda line: None,
    )
    assert [e.bucket for e in result.examples][:2] == [4, 4]
    assert any("guessing among them counts as knowing" in note for note in result.notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '{"question": "x", "answer": "y"}\n',
            "row 1: there is 'question', 'answer', not one of prompt and completion",
        ),
        ('{"prompt": "x", "completion": "y"}\n{"prompt": "x"}\n', "row 2: there is 'prompt', not one of"),
        ('{"prompt": "x", "completion": " "}\n', "there is not a single example to train on"),
        ('{"prompt": "x", "completion": "y"\n', "row 1: not JSON"),
        ("[1]\n", "row 1: must be an object"),
        ("", "there is not a single example"),
    ],
)
def test_data_that_cannot_be_used(tmp_path: Path, tiny_model: Path, content: str, words: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    with pytest.raises(FactsError) as caught:
        select(str(file), str(tiny_model), say=lambda line: None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path, numbered(4))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for line, words in (
        ([str(tmp_path / "nothing.jsonl"), "--model", "lab"], "no data at"),
        ([data, "--model", str(tmp_path / "none")], "there is no model at"),
        ([data, "--model", "lab", "--buckets", "5"], "--buckets"),
        ([data, "--model", "lab", "--size", "0"], "--size"),
        ([data, "--model", "lab", "--out", str(tmp_path / "full")], "is there already and is no selection"),
        ([data, "--model", "lab", "--topics", "t.json"], "--topics does nothing here"),
    ):
        assert main(["select", *line]) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]


def test_splits_of_a_folder(tiny_model: Path, tmp_path: Path, asks: Any) -> None:
    asks(lambda prompt, i: "?")
    folder = tmp_path / "data"
    folder.mkdir()
    written(folder, numbered(3), "train-00000.jsonl")
    written(folder, numbered(5), "test-00000.jsonl")
    result = select(str(folder), str(tiny_model), say=lambda line: None)
    assert len(result.examples) == 3
    assert result.left_out == {"test split": 5}
    assert result.sentence.startswith("Nothing to draw from: no example of the 3")
    select(str(folder), str(tiny_model), out=tmp_path / "out", say=lambda line: None)
    assert len(load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "hf"))["bucket_0"]) == 3
