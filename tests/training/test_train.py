"""Fine-tuning: what is trained on, what comes out, that it comes out the same twice, and whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from sftknow.artifacts.manifests import dataset_of_model, read_manifest
from sftknow.errors import CheckpointError, DeviceError, MasteryDataError, ModelError
from sftknow.prompts import prompt_ids
from sftknow.records import Fact, ModelRef, TrainedModel, to_json
from sftknow.training import train, trainer
from sftknow.training.arguments import training_arguments
from sftknow.training.draws import draw
from sftknow.training.examples import IGNORED, answer_ids, chat_template, encode
from sftknow.training.recipe import SFTRecipe
from sftknow.training.train import LoadedBase, fine_tune, load_base
from sftknow.training.trainer import build_trainer
from tests.tiny import graded, tiny_facts, tiny_tokenizer

RECIPE = SFTRecipe(learning_rate=1e-3, batch_size=4, save_dtype="bfloat16")
FACTS = tiny_facts(18)


@pytest.fixture(scope="module")
def ref(tiny_model: Path) -> ModelRef:
    return ModelRef(path=str(tiny_model))


@pytest.fixture(scope="module")
def loaded(ref: ModelRef) -> LoadedBase:
    return load_base(ref, RECIPE)


@pytest.fixture(scope="module")
def trained(ref: ModelRef, loaded: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """One fine-tuned checkpoint that many tests look at. Read only."""
    out = tmp_path_factory.mktemp("trained") / "models" / "b2-n18-s0"
    manifest = {"mastery_dataset": {"path": "../../dataset", "fingerprint": "f"}, "bucket": 2, "cell": "b2-n18-s0"}
    return fine_tune(ref, FACTS, out, recipe=RECIPE, seed=0, manifest=manifest, loaded=loaded)


@pytest.fixture(scope="module")
def dropout_base(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """A GPT-2: dropout, tied weights, one token for both ends, no padding token, sampling by default."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, bos_token="</s>", eos_token="</s>"
    )
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=384, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1)
    model = GPT2LMHeadModel(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=[7, 1])
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return ModelRef(path=str(folder))


def weights(model: TrainedModel) -> bytes:
    return (model.checkpoint / "model.safetensors").read_bytes()


def trainer_of(loaded: LoadedBase, recipe: SFTRecipe, folder: Path, facts: list[Fact] = FACTS) -> Any:
    examples = encode(loaded.tokenizer, facts, answer_only_loss=recipe.answer_only_loss, max_length=recipe.max_length)
    return build_trainer(loaded.copy_model(), loaded.tokenizer, examples, training_arguments(recipe, folder, seed=0))


@pytest.mark.parametrize("answer_only", [True, False])
def test_the_trainer_collates_the_evaluation_prompt_and_the_answer(
    loaded: LoadedBase, tmp_path: Path, answer_only: bool
) -> None:
    recipe = dataclasses.replace(RECIPE, answer_only_loss=answer_only)
    batches = list(trainer_of(loaded, recipe, tmp_path).get_train_dataloader())
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 4, 4, 2]
    tokenizer = loaded.tokenizer
    rows = [{name: batch[name][i] for name in batch} for batch in batches for i in range(len(batch["input_ids"]))]
    for fact, row in zip(FACTS, rows, strict=True):
        prompt = prompt_ids(tokenizer, fact.question)
        answer = tokenizer(f" {fact.object} ", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        length = len(prompt) + len(answer)
        assert row["input_ids"][:length].tolist() == prompt + answer
        assert row["input_ids"].tolist().count(tokenizer.bos_token_id) == 1
        assert row["attention_mask"].tolist() == [1] * length + [0] * (len(row["input_ids"]) - length)
        expected = [IGNORED] * len(prompt) + answer if answer_only else prompt + answer
        assert row["labels"].tolist() == expected + [IGNORED] * (len(row["input_ids"]) - length)


def by_hand(loaded: LoadedBase, recipe: SFTRecipe, facts: list[Fact]) -> tuple[Any, list[float]]:
    """The same training written out: one example at a time, AdamW, cosine, clipping; returns model and losses."""
    model = loaded.copy_model().train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
    )
    per_epoch = math.ceil(len(facts) / recipe.batch_size)
    steps = per_epoch * recipe.epochs
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(recipe.warmup_ratio * steps), steps)
    losses = []
    for step in range(steps):
        start = step % per_epoch * recipe.batch_size
        total, count = torch.zeros(()), 0
        for fact in facts[start : start + recipe.batch_size]:
            prompt = prompt_ids(loaded.tokenizer, fact.question)
            answer = answer_ids(loaded.tokenizer, fact.question, fact.object)
            ids = torch.tensor([prompt + answer])
            first = len(prompt) if recipe.answer_only_loss else 1
            logits = model(input_ids=ids).logits[0, first - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(logits, ids[0, first:], reduction="sum")
            count += len(ids[0]) - first
        (total / count).backward()
        losses.append(float(total.detach() / count))
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, losses


@pytest.mark.parametrize(
    "changes", [{}, {"answer_only_loss": False, "epochs": 2, "weight_decay": 0.1, "warmup_ratio": 0.25}], ids=str
)
def test_it_is_the_training_that_the_recipe_says(
    ref: ModelRef, loaded: LoadedBase, tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = dataclasses.replace(RECIPE, save_dtype="float32", **changes)
    expected, losses = by_hand(loaded, recipe, FACTS)
    model = fine_tune(ref, FACTS, tmp_path / "out", recipe=recipe, seed=0, manifest={}, loaded=loaded)
    curve = json.loads((tmp_path / "out" / "loss.json").read_text())
    assert [entry["loss"] for entry in curve] == pytest.approx(losses, rel=1e-4)
    assert [entry["step"] for entry in curve] == list(range(1, model.steps + 1))
    assert curve[-1]["epoch"] == recipe.epochs
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    moved = 0.0
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=2e-5)
        moved = max(moved, float((tensor - loaded.model.state_dict()[name]).abs().max()))
    assert moved > 1e-3  # a hundred times the tolerance


def test_the_checkpoint_loads_and_answers_like_any_other(trained: TrainedModel, loaded: LoadedBase) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(trained.checkpoint)
    base = loaded.tokenizer
    question = FACTS[0].question
    assert tokenizer.chat_template == chat_template()
    assert base.chat_template is None
    assert prompt_ids(tokenizer, question) == prompt_ids(base, question)
    assert tokenizer("Arden is in")["input_ids"] == base("Arden is in")["input_ids"]
    assert tokenizer.pad_token_id == base.pad_token_id
    ids = tokenizer.apply_chat_template([{"role": "user", "content": question}], return_dict=False)
    assert ids == prompt_ids(base, question)
    assert {t.dtype for t in load_file(trained.checkpoint / "model.safetensors").values()} == {torch.bfloat16}
    assert model.dtype == torch.float32, "stored in bfloat16, loaded in the dtype that the base is loaded in"
    generation = model.generation_config
    assert not generation.do_sample
    assert generation.eos_token_id == tokenizer.eos_token_id
    prompt = torch.tensor([ids])
    assert torch.equal(model.generate(prompt, max_new_tokens=4), model.generate(prompt, max_new_tokens=4))


def test_names_shapes_and_configuration_are_the_bases(trained: TrainedModel, tiny_model: Path) -> None:
    before = load_file(tiny_model / "model.safetensors")
    after = load_file(trained.checkpoint / "model.safetensors")
    assert {name: t.shape for name, t in after.items()} == {name: t.shape for name, t in before.items()}
    assert {t.dtype for t in after.values()} == {torch.bfloat16}
    assert all(not torch.equal(after[name], before[name].bfloat16()) for name in after)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tiny_model, trained.checkpoint)]
    assert configs[0]["dtype"] == "float32"
    assert configs[1] == configs[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_weights_are_stored_as_the_bases_are_unless_told(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    recipe = dataclasses.replace(RECIPE, save_dtype=None)
    made = fine_tune(ModelRef(path=str(base)), FACTS[:4], tmp_path / "out", recipe=recipe, seed=0, manifest={})
    after = load_file(made.checkpoint / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {getattr(torch, dtype)}
    manifest = read_manifest(made.checkpoint, "model") or {}
    assert manifest["sft"]["recipe"]["save_dtype"] == dtype


def test_the_manifest_says_what_was_done(trained: TrainedModel, ref: ModelRef) -> None:
    manifest = read_manifest(trained.checkpoint, "model")
    assert manifest is not None
    sft = manifest["sft"]
    assert manifest["base"] == {"path": ref.path, "revision": None}
    assert manifest["cell"] == "b2-n18-s0"
    assert SFTRecipe(**sft["recipe"]) == RECIPE
    assert (sft["seed"], sft["size"], sft["bucket"], sft["steps"], sft["device"]) == (0, 18, 2, 5, "cpu")
    assert sft["fact_ids"] == [fact.id for fact in FACTS]
    assert {"sftknow", "torch", "transformers", "trl"} <= set(sft["versions"])
    assert sft["final_loss"] == trained.final_loss
    assert trained.steps == 5
    assert dataset_of_model(trained.checkpoint) == (str(trained.checkpoint.parents[1] / "dataset"), None)


def test_the_data_hash_is_the_draws(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    note, facts = draw([graded(fact, 2) for fact in FACTS], bucket=2, size=8, seed=4)
    manifest = {"base": {"path": "lab", "sha256": "s"}, "draw": to_json(note), "sft": "overruled"}
    fine_tune(ref, facts, tmp_path / "m", recipe=RECIPE, seed=4, manifest=manifest, loaded=loaded)
    written = json.loads((tmp_path / "m" / "sftknow.json").read_text())
    assert written["sft"]["data_sha256"] == note.sha256 == written["draw"]["sha256"]
    assert tuple(written["sft"]["fact_ids"]) == note.fact_ids
    assert (written["sft"]["bucket"], written["sft"]["seed"]) == (2, 4)
    assert written["base"] == {"path": "lab", "revision": None, "sha256": "s"}


def test_the_same_seed_gives_the_same_bytes_from_a_shared_or_a_fresh_load(
    dropout_base: ModelRef, tmp_path: Path
) -> None:
    shared = load_base(dropout_base, RECIPE)
    before = {name: tensor.clone() for name, tensor in shared.model.state_dict().items()}

    def cell(name: str, facts: list[Fact], seed: int, loaded: LoadedBase | None) -> bytes:
        return weights(
            fine_tune(dropout_base, facts, tmp_path / name, recipe=RECIPE, seed=seed, manifest={}, loaded=loaded)
        )

    first, second = cell("a", FACTS, 0, shared), cell("b", FACTS[::-1], 1, shared)
    assert cell("a-fresh", FACTS, 0, None) == first
    assert cell("b-fresh", FACTS[::-1], 1, None) == second
    assert cell("a-again", FACTS, 0, shared) == first
    assert cell("a-other-seed", FACTS, 1, shared) != first  # dropout is the only chance in training
    assert all(torch.equal(tensor, before[name]) for name, tensor in shared.model.state_dict().items())
    assert "forward" not in vars(shared.model)


def test_other_kinds_of_tokenizers_and_generation_defaults(dropout_base: ModelRef, tmp_path: Path) -> None:
    fine_tune(dropout_base, FACTS, tmp_path / "out", recipe=RECIPE, seed=0, manifest={})
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert not generation.do_sample
    assert (generation.temperature, generation.top_p) == (None, None)
    assert generation.eos_token_id == [1, 7]
    assert generation.pad_token_id == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token is None


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_tied_as_they_were(tmp_path: Path, tied: bool) -> None:
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    config.tie_word_embeddings = tied
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = ModelRef(path=str(tmp_path / "base"))
    loaded = load_base(base, RECIPE)
    fine_tune(base, FACTS[:4], tmp_path / "out", recipe=RECIPE, seed=0, manifest={}, loaded=loaded)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert set(tensors) == set(load_file(tmp_path / "base" / "model.safetensors"))
    assert ("lm_head.weight" in tensors) is not tied
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) is tied


def test_dtypes_are_those_named_whatever_ran_before(ref: ModelRef, tmp_path: Path) -> None:
    results = {}
    names = ("load_dtype", "compute_dtype", "save_dtype")
    for dtypes in [
        ("float32", "float32", "float32"),
        ("float32", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float32", "float32", "float16"),
        ("float32", "float32", "float32"),
    ]:
        recipe = dataclasses.replace(RECIPE, **dict(zip(names, dtypes, strict=True)))
        fine_tune(ref, FACTS[:8], tmp_path / "out", recipe=recipe, seed=0, manifest={})
        tensors = load_file(tmp_path / "out" / "model.safetensors")
        assert {t.dtype for t in tensors.values()} == {getattr(torch, dtypes[2])}
        result = tensors["model.layers.0.mlp.up_proj.weight"]
        assert dtypes not in results or torch.equal(results[dtypes], result)
        results[dtypes] = result
    exact = results["float32", "float32", "float32"]
    assert torch.equal(results["float32", "float32", "float16"], exact.half())
    assert not torch.equal(results["float32", "bfloat16", "float32"], exact)
    assert not torch.equal(results["bfloat16", "bfloat16", "bfloat16"], exact.bfloat16())


def test_small_steps_are_lost_in_bfloat16_weights_and_kept_in_float32(ref: ModelRef, tmp_path: Path) -> None:
    """Why the dtypes are named: at a small rate, which parameters change at all depends on them."""
    changed = {}
    for dtype in ("float32", "bfloat16"):
        recipe = SFTRecipe(learning_rate=1e-5, load_dtype=dtype, compute_dtype=dtype, save_dtype=dtype)
        loaded = load_base(ref, recipe)
        fine_tune(ref, FACTS, tmp_path / dtype, recipe=recipe, seed=0, manifest={}, loaded=loaded)
        after = load_file(tmp_path / dtype / "model.safetensors")
        name = "model.layers.0.mlp.up_proj.weight"
        changed[dtype] = float((after[name] != loaded.model.state_dict()[name]).float().mean())
    assert changed["float32"] > 0.99
    assert changed["bfloat16"] < 0.9


def test_nothing_is_sent_nothing_lies_about_and_only_the_bar_is_shown(
    ref: ModelRef,
    loaded: LoadedBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *a, **k: sent.append(k))
    monkeypatch.delenv("CI", raising=False)  # where it is set TRL sends nothing anyway
    monkeypatch.chdir(tmp_path)
    fine_tune(ref, FACTS, Path("models/one"), recipe=RECIPE, seed=0, manifest={}, loaded=loaded)
    assert sent == []
    assert [p.name for p in tmp_path.iterdir()] == ["models"]
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["one"]
    assert sorted(p.name for p in (tmp_path / "models" / "one").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "loss.json",
        "model.safetensors",
        "sftknow.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    rights = {path.stat().st_mode & 0o777 for path in (tmp_path / "models" / "one").iterdir()}
    assert rights == {(tmp_path / "models" / "one" / "loss.json").stat().st_mode & 0o777}, "as the umask says"
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")
    assert [str(w.message) for w in recwarn] == []


def test_bad_requests_stop_before_the_first_step(
    ref: ModelRef, loaded: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(train, "train_in_place", never)
    out = tmp_path / "out"
    with pytest.raises(MasteryDataError, match="no facts"):
        fine_tune(ref, [], out, recipe=RECIPE, seed=0, manifest={}, loaded=loaded)
    empty = dataclasses.replace(FACTS[3], object=" ")
    with pytest.raises(ModelError, match=rf"{empty.id} has no answer tokens"):
        fine_tune(ref, [*FACTS, empty], out, recipe=RECIPE, seed=0, manifest={}, loaded=loaded)
    long = dataclasses.replace(FACTS[0], question="x " * 200)
    with pytest.raises(ModelError, match="the model takes 128"):
        fine_tune(ref, [long], out, recipe=SFTRecipe(max_length=999), seed=0, manifest={}, loaded=loaded)
    if not torch.cuda.is_available():
        recipe = dataclasses.replace(RECIPE, compute_dtype="float16")
        with pytest.raises(DeviceError, match="float16"):
            fine_tune(ref, FACTS, out, recipe=recipe, seed=0, manifest={}, loaded=loaded)
    recipe = dataclasses.replace(RECIPE, load_dtype="bfloat16", compute_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"not .* in bfloat16"):
        fine_tune(ref, FACTS, out, recipe=recipe, seed=0, manifest={}, loaded=loaded)
    with pytest.raises(CheckpointError, match="is the base model itself"):
        fine_tune(ref, FACTS, Path(ref.path), recipe=RECIPE, seed=0, manifest={}, loaded=loaded)
    with pytest.raises(CheckpointError, match="something else"):
        fine_tune(ref, FACTS, Path(ref.path).parent, recipe=RECIPE, seed=0, manifest={}, loaded=loaded)
    with pytest.raises(CheckpointError, match="something else"):
        fine_tune(ref, FACTS, Path(__file__), recipe=RECIPE, seed=0, manifest={}, loaded=loaded)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="make room"):
        fine_tune(ref, FACTS, tmp_path / "new" / "out", recipe=RECIPE, seed=0, manifest={}, loaded=loaded)
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_saves_nothing(
    ref: ModelRef, loaded: LoadedBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = dataclasses.replace(RECIPE, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(ModelError, match="lower learning_rate"):
        fine_tune(ref, FACTS, tmp_path / "out", recipe=recipe, seed=0, manifest={}, loaded=loaded)
    one_step = dataclasses.replace(recipe, learning_rate=1e6, save_dtype="float16")
    with pytest.raises(ModelError, match=r"not finite in torch\.float16"):
        fine_tune(ref, FACTS[:4], tmp_path / "out", recipe=one_step, seed=0, manifest={}, loaded=loaded)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def killed_at_step_3(ref: ModelRef, loaded: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training whose process was killed by SIGKILL in its third step."""

    def die(watch: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        torch.set_num_threads(1)  # the parent's threads do not exist in a fork
        monkeypatch.setattr(trainer.Watch, "on_step_end", die)
        fine_tune(ref, FACTS, tmp_path / "out", recipe=RECIPE, seed=0, manifest={}, loaded=loaded)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(timeout=120)
    if process.is_alive():
        process.kill()
    assert process.exitcode == -signal.SIGKILL
    return tmp_path / "out"


def test_a_killed_training_leaves_nothing_that_looks_finished(
    killed_at_step_3: Path, trained: TrainedModel, ref: ModelRef, loaded: LoadedBase
) -> None:
    out = killed_at_step_3
    assert not out.exists()
    assert not list(out.parent.rglob("sftknow.json"))
    again = fine_tune(ref, FACTS, out, recipe=RECIPE, seed=0, manifest={}, loaded=loaded)
    assert weights(again) == weights(trained)
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_checkpoint_is_replaced_only_by_a_whole_one(
    ref: ModelRef, loaded: LoadedBase, trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained.checkpoint, out)

    def fail(*_: Any) -> None:
        raise OSError("disk on fire")

    with monkeypatch.context() as patch:
        patch.setattr(train, "write_manifest", fail)
        with pytest.raises(OSError, match="disk on fire"):
            fine_tune(ref, FACTS[:4], out, recipe=RECIPE, seed=0, manifest={}, loaded=loaded)
    assert (out / "model.safetensors").read_bytes() == weights(trained)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    fine_tune(ref, FACTS[:4], out, recipe=RECIPE, seed=0, manifest={}, loaded=loaded)
    assert (out / "model.safetensors").read_bytes() != weights(trained)
