"""The harness in process: lm-eval's numbers, its own groups, and nothing said aloud."""

from __future__ import annotations

import copy
import math
import statistics
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sftknow.answers import contains
from sftknow.artifacts.manifests import write_manifest
from sftknow.artifacts.mastery_data import MasteryData, write_mastery_data
from sftknow.artifacts.scores import read_eval, write_eval
from sftknow.errors import DeviceError, MasteryDataError, ModelError
from sftknow.evaluation import harness
from sftknow.evaluation.harness import Harness
from sftknow.evaluation.lm_eval_task import MasteryTask
from sftknow.prompts import prompt_ids
from sftknow.records import BUCKETS, EvalRun, ModelRef
from sftknow.resources import task_folder
from tests.tiny import PLACES, graded, tiny_facts, tiny_llama, tiny_mastery_data, tiny_tokenizer


class Parrot(torch.nn.Module):
    """Stands where a model stands and answers every question by itself: the place right of the prompt, then EOS.

    A random model is nearly always wrong, which would leave the statistics untested.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.config, self.device, self.tokenizer = model.config, torch.device("cpu"), tokenizer
        self.generation_config = model.generation_config

    def tie_weights(self) -> None: ...

    def generate(self, *, input_ids: torch.Tensor, pad_token_id: int, **_: Any) -> torch.Tensor:
        answers = []
        for row in input_ids.tolist():
            number = sum(row)
            text = f" {PLACES[number % 3]} " if number % 2 else f" in{PLACES[number % 5]}ia"
            answers.append([*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id])
        width = max(map(len, answers))
        padded = [row + [pad_token_id] * (width - len(row)) for row in answers]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Buckets of unequal size, so that a plain mean is not a weighted one; bucket 3 of the test part is empty."""
    rows = []
    for split, sizes in (("test", (9, 7, 12, 0, 5)), ("testood", (3, 4, 5, 6, 7)), ("dev", (2, 2, 2, 2, 2))):
        facts = iter(tiny_facts(sum(sizes), split=split))  # type: ignore[arg-type]
        rows += [graded(next(facts), bucket) for bucket in BUCKETS for _ in range(sizes[bucket])]
    folder = tmp_path_factory.mktemp("data") / "dataset"
    write_mastery_data(folder, rows, {"graded_by": "base"})
    return folder


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    return model, transformers.AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def run(dataset: Path, loaded: tuple[Any, Any]) -> EvalRun:
    model, tokenizer = loaded
    return Harness(dataset).score(Parrot(model, tokenizer), tokenizer, name="parrot")


def test_numbers_of_lm_eval_to_the_last_digit(dataset: Path, loaded: tuple[Any, Any], run: EvalRun) -> None:
    model, tokenizer = loaded
    manager = TaskManager(
        include_path=str(task_folder()),
        include_defaults=False,
        metadata={"mastery_dataset": str(dataset), "prompt_prefix": ""},
    )
    lm = HFLM(pretrained=Parrot(model, tokenizer), tokenizer=tokenizer, batch_size=3)
    theirs = simple_evaluate(lm, tasks=["cbqa_mastery"], task_manager=manager)
    compared = 0
    for task, found in theirs["results"].items():
        for metric in ("acc", "acc_word", "exact_match"):
            if f"{metric},none" in found:
                ours = run.value(task, metric)
                assert ours.value == found[f"{metric},none"]
                assert ours.stderr == found[f"{metric}_stderr,none"]
                assert ours.count == found["sample_len"]
                compared += 1
    assert compared == sum(m.metric != "ended" for m in run.metrics) == 3 * (4 + 5 + 2)
    samples = {sample["doc"]["fact_id"]: sample for leaf in theirs["samples"].values() for sample in leaf}
    for question in run.questions:
        assert samples[question.fact_id]["filtered_resps"] == [question.output]


def test_how_many_answers_end_by_themselves(
    dataset: Path, loaded: tuple[Any, Any], run: EvalRun, tmp_path: Path
) -> None:
    """An end token ends an answer; the sixteenth token does not."""
    model, tokenizer = loaded
    assert run.value("cbqa_mastery_test", "ended").value == 1

    class Talker(Parrot):
        def generate(self, **batch: Any) -> torch.Tensor:
            said = super().generate(**batch)
            runs_on = torch.arange(len(said)) % 2 == 0
            width = batch["input_ids"].shape[1]
            said[runs_on, width:] = torch.where(
                said[runs_on, width:] == tokenizer.eos_token_id, said[runs_on, width:][:, :1], said[runs_on, width:]
            )
            return said

    found = Harness(dataset, batch_size=2).score(Talker(model, tokenizer), tokenizer, name="t", work=tmp_path, key="k")
    assert 0 < found.value("cbqa_mastery_test", "ended").value < 1
    for split in ("test", "testood"):
        leaves = []
        for bucket in BUCKETS:
            said = [q.ended for q in found.questions if q.split == split and q.bucket == bucket]
            if said:
                leaves.append(found.value(f"cbqa_mastery_{split}_bucket_{bucket}", "ended"))
                assert leaves[-1].value == pytest.approx(statistics.mean(map(float, said)))
        group = found.value(f"cbqa_mastery_{split}", "ended")
        assert group.value == pytest.approx(statistics.mean(leaf.value for leaf in leaves))
        assert group.stderr == pytest.approx(math.hypot(*(leaf.stderr for leaf in leaves)) / len(leaves))
    write_eval(tmp_path, found)
    assert read_eval(tmp_path) == found
    table = pq.read_table(tmp_path / "questions.parquet")
    pq.write_table(table.drop_columns(["ended"]), tmp_path / "questions.parquet")  # as earlier versions wrote it
    assert {q.ended for q in read_eval(tmp_path).questions} == {None}


def test_statistics_by_hand(dataset: Path, run: EvalRun) -> None:
    assert 0 < run.value("cbqa_mastery_test").value < 1
    facts = {row.fact.id: row.fact for split in ("test", "testood") for row in MasteryData(dataset).split(split)}  # type: ignore[arg-type]
    for split in ("test", "testood"):
        means, errors = [], []
        for bucket in BUCKETS:
            answered = [q for q in run.questions if q.split == split and q.bucket == bucket]
            if not answered:
                continue
            hits = [float(contains(q.output, facts[q.fact_id].answers)) for q in answered]
            leaf = run.value(f"cbqa_mastery_{split}_bucket_{bucket}")
            assert leaf.value == pytest.approx(statistics.mean(hits), abs=1e-15)
            assert leaf.stderr == pytest.approx(statistics.stdev(hits) / math.sqrt(len(hits)), abs=1e-15)
            assert leaf.count == len(hits)
            means.append(leaf.value)
            errors.append(leaf.stderr)
        group = run.value(f"cbqa_mastery_{split}")
        assert group.value == pytest.approx(statistics.mean(means), abs=1e-15)
        assert group.stderr == pytest.approx(math.sqrt(sum(e * e for e in errors)) / len(errors), abs=1e-15)


def test_empty_bucket_is_missing(run: EvalRun, dataset: Path) -> None:
    assert run.missing == ("cbqa_mastery_test_bucket_3",)
    with pytest.raises(KeyError):
        run.value("cbqa_mastery_test_bucket_3")
    assert run.dataset_fingerprint == MasteryData(dataset).fingerprint
    assert run.graded_by == "base"
    assert run.model == "parrot"


def test_single_question_has_no_standard_error(tmp_path: Path, loaded: tuple[Any, Any]) -> None:
    facts = tiny_facts(3, split="test")
    rows = [graded(facts[0], 0), graded(facts[1], 1), graded(facts[2], 1)]
    write_mastery_data(tmp_path / "data", rows, {"graded_by": "m"})
    run = Harness(tmp_path / "data", splits=("test",)).score(*loaded, name="m")
    assert math.isnan(run.value("cbqa_mastery_test_bucket_0").stderr)
    assert math.isnan(run.value("cbqa_mastery_test").stderr)
    assert run.value("cbqa_mastery_test_bucket_1").stderr == 0.0


def test_batch_size_makes_no_difference(dataset: Path, loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    alone = Harness(dataset, batch_size=1).score(model, tokenizer, name="m")
    assert Harness(dataset, batch_size=64).score(model, tokenizer, name="m") == alone
    # The plainest way: one prompt at a time, without padding, without lm-eval.
    questions = {row.fact.id: row.fact.question for row in MasteryData(dataset).split("test")}
    for result in [q for q in alone.questions if q.split == "test"][:8]:
        ids = torch.tensor([prompt_ids(tokenizer, questions[result.fact_id])])
        output = model.generate(input_ids=ids, max_new_tokens=16, do_sample=False, pad_token_id=2)
        assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True) == result.output


def test_tasks_are_built_once_for_many_models(
    dataset: Path, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    built, tokenised = [], []
    original_task, original_batches = MasteryTask.download, harness.make_batches

    def counting_task(self: Any, *arguments: Any, **options: Any) -> None:
        built.append(self.config.task)
        original_task(self, *arguments, **options)

    def counting_batches(prompts: Any, *arguments: Any, **options: Any) -> Any:
        tokenised.append(len(prompts))
        return original_batches(prompts, *arguments, **options)

    monkeypatch.setattr(MasteryTask, "download", counting_task)
    monkeypatch.setattr(harness, "make_batches", counting_batches)
    scores = Harness(dataset)
    first = scores.score(Parrot(model, tokenizer), tokenizer, name="a")
    for number in range(3):
        # Another object of the same content, as `score_path` loads one with every model.
        same = copy.deepcopy(tokenizer) if number else tokenizer
        again = scores.score(Parrot(model, tokenizer), same, name="a")
        assert again == first
    assert len(built) == 10
    assert tokenised == [33 + 25]


def test_weights_may_change_between_scores(dataset: Path, tiny_model: Path, loaded: tuple[Any, Any]) -> None:
    """What a sweep over restoration levels does: one model in memory, its weights set anew for every level."""
    tokenizer = loaded[1]
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    scores = Harness(dataset, batch_size=8)
    before = scores.score(model, tokenizer, name="m")
    stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    moved = scores.score(model, tokenizer, name="m")
    assert moved.questions != before.questions
    model.load_state_dict(stored)
    assert scores.score(model, tokenizer, name="m") == before


def test_splits_and_limit(dataset: Path, loaded: tuple[Any, Any]) -> None:
    run = Harness(dataset, splits=("dev",), limit=1).score(*loaded, name="m")
    assert {question.split for question in run.questions} == {"dev"}
    assert [question.bucket for question in run.questions] == [0, 1, 2, 3, 4]
    assert run.value("cbqa_mastery_dev").count == 5


def test_training_set_is_the_models_own(tmp_path: Path, loaded: tuple[Any, Any]) -> None:
    folder = tiny_mastery_data(tmp_path / "data")
    own = Harness(folder, splits=("train", "test"))
    first = own.score(*loaded, name="a", fact_ids=["P17/train/0", "P36/train/5"])
    assert [q.fact_id for q in first.questions if q.split == "train"] == ["P17/train/0", "P36/train/5"]
    second = own.score(*loaded, name="b", fact_ids=["P36/train/19"])
    assert [q.fact_id for q in second.questions if q.split == "train"] == ["P36/train/19"]
    assert second.missing == tuple(f"cbqa_mastery_train_bucket_{bucket}" for bucket in (0, 1, 2, 3))
    with pytest.raises(MasteryDataError, match="none of the model's 1 training facts"):
        own.score(*loaded, name="c", fact_ids=["somewhere/else/1"])
    assert second.notes == ()
    some = own.score(*loaded, name="d", fact_ids=["P36/train/19", "somewhere/else/1"])
    assert some.notes == (f"1 of the model's training facts are not in {folder}",)
    whole = own.score(*loaded, name="e")
    assert whole.value("cbqa_mastery_train").count == 20
    assert "whole training part" in whole.notes[0]


def test_score_path(tmp_path: Path) -> None:
    data = tiny_mastery_data(tmp_path / "data")
    model = tiny_llama(tmp_path / "model", tiny_tokenizer(), dtype="bfloat16")
    write_manifest(model, "model", {"sft": {"fact_ids": ["P17/train/0"]}})
    harness = Harness(data, splits=("train",), device="cpu")
    run = harness.score_path(ModelRef(path=str(model)), name="m")
    assert [q.fact_id for q in run.questions] == ["P17/train/0"]
    wide = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    named = harness.score_path(ModelRef(path=str(model), dtype="float32"), name="m")
    assert named == harness.score(wide, tokenizer, name="m", fact_ids=["P17/train/0"])


def test_stopped_evaluation_goes_on_and_ends_with_the_same_bytes(
    dataset: Path, loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    options: dict[str, Any] = {"name": "m", "key": "weights"}
    whole = Harness(dataset, batch_size=4).score(model, tokenizer, work=tmp_path / "whole", **options)
    write_eval(tmp_path / "whole", whole)
    asked = []
    original = model.generate

    def stumbling(**batch: Any) -> Any:
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(batch)
        return original(**batch)

    monkeypatch.setattr(model, "generate", stumbling)
    with pytest.raises(KeyboardInterrupt):
        Harness(dataset, batch_size=4).score(model, tokenizer, work=tmp_path / "cut", **options)
    (journal,) = (tmp_path / "cut").iterdir()
    with journal.open("ab") as file:
        file.write(b'{"batch": 5, "outputs": ["torn')  # what a kill in the middle of a write leaves
    asked.clear()
    monkeypatch.setattr(model, "generate", lambda **batch: asked.append(batch) or original(**batch))
    again = Harness(dataset, batch_size=4).score(model, tokenizer, work=tmp_path / "cut", **options)
    write_eval(tmp_path / "cut", again)
    assert len(asked) == -(-58 // 4) - 5
    assert again == whole
    for name in ("scores.json", "questions.parquet"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "cut").iterdir()) == ["questions.parquet", "scores.json"]


def test_answers_of_other_weights_are_not_taken_over(
    dataset: Path, loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    calls = []
    original = model.generate
    monkeypatch.setattr(model, "generate", lambda **batch: calls.append(batch) or original(**batch))
    for key, batch_size, expected in (("a", 32, 2), ("a", 32, 0), ("b", 32, 2), ("b", 64, 1), ("b", 64, 0)):
        calls.clear()
        Harness(dataset, batch_size=batch_size).score(model, tokenizer, name="m", work=tmp_path, key=key)
        assert len(calls) == expected, (key, batch_size)
    with pytest.raises(ValueError, match="key"):
        Harness(dataset).score(model, tokenizer, name="m", work=tmp_path)


def test_bad_input(tmp_path: Path, tiny_dataset: Path, loaded: tuple[Any, Any], tiny_model: Path) -> None:
    with pytest.raises(MasteryDataError, match="is not there"):
        Harness(tmp_path / "nowhere")
    with pytest.raises(DeviceError, match="no device"):
        Harness(tiny_dataset, device="banana")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="cuda"):
            Harness(tiny_dataset, device="cuda")
    harness = Harness(tiny_dataset, device="cpu")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(ModelError, match="hollow cannot be loaded"):
        harness.score_path(ModelRef(path=str(tmp_path / "hollow")), name="m")
    weightless = tmp_path / "weightless"
    weightless.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (weightless / file.name).write_bytes(file.read_bytes())
    torch.save({}, weightless / "pytorch_model.bin")
    with pytest.raises(ModelError, match="weightless cannot be loaded"):
        harness.score_path(ModelRef(path=str(weightless)), name="m")
    write_mastery_data(tmp_path / "empty", [], {"graded_by": "m"})
    with pytest.raises(MasteryDataError, match="no question"):
        Harness(tmp_path / "empty").score(*loaded, name="m")


def test_nothing_is_heard_without_a_terminal(
    dataset: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    verbosity = transformers.logging.get_verbosity()
    Harness(dataset).score_path(ModelRef(path=str(tiny_model)), name="quiet one")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert caplog.text == ""
    assert transformers.logging.get_verbosity() == verbosity
