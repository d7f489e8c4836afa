"""The guard: it sees what a training loses, changes nothing of the training, costs what it may, stops when told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sftknow.errors import FactsError, ModelError
from sftknow.resources import lab_folder
from sftknow.run.guard import KnowledgeGuard

# SFTConfig's own default trips over the new name of one of its arguments.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Stands for whatever `report_to` names."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        self.logs.append(dict(logs))


def trained(
    folder: Path,
    guard: KnowledgeGuard | None,
    *,
    steps: int = 4,
    rate: float = 1e-3,
    attach: bool = True,
    peft_config: Any = None,
) -> tuple[SFTTrainer, Recorder]:
    model = AutoModelForCausalLM.from_pretrained(lab_folder() / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(lab_folder() / "model")
    data = Dataset.from_list([{"text": f"The capital of Nowhere {i} is Elsewhere {i * 7 % 5}."} for i in range(32)])
    recorder = Recorder()
    arguments = SFTConfig(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=rate, report_to=[],
        save_strategy="no", logging_steps=2, seed=0, use_cpu=True, dataset_num_proc=None, warmup_steps=0,
        lr_scheduler_type="constant", bf16=False,
    )  # fmt: skip
    callbacks = [recorder] if guard is None else [guard, recorder]
    trainer = SFTTrainer(
        model,
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=peft_config,
    )
    if guard is not None and attach:
        guard.attach(trainer)
    trainer.train()
    return trainer, recorder


def quick(**more: Any) -> KnowledgeGuard:
    return KnowledgeGuard(**{"facts": "lab", "count": 120, "every": 2, "max_new_tokens": 8, "most_time": 1e9} | more)


def test_the_training_is_the_same_to_the_bit_and_the_log_has_it(tmp_path: Path) -> None:
    plain, _ = trained(tmp_path / "plain", None)
    guard = quick()
    guarded, recorder = trained(tmp_path / "guarded", guard)
    for (name, one), two in zip(plain.model.state_dict().items(), guarded.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert [entry["step"] for entry in guard.history] == [2, 4]
    logged = [entry for entry in recorder.logs if "knowledge/kept" in entry]
    assert [entry["knowledge/kept"] for entry in logged] == [entry["kept"] for entry in guard.history]
    assert {"knowledge/kept_low", "knowledge/kept_high", "knowledge/bucket_0", "knowledge/bucket_4"} <= logged[0].keys()
    assert guarded.model.training
    assert guarded.model.config.use_cache == plain.model.config.use_cache


def test_a_training_that_wrecks_the_model_is_stopped(tmp_path: Path) -> None:
    guard = quick(every=1, stop_at=20.0)
    trainer, _ = trained(tmp_path, guard, steps=12, rate=0.05, attach=False)
    assert trainer.state.global_step < 12
    assert guard.history[-1]["kept_high"] < 0.8
    assert [entry for entry in trainer.state.log_history if "knowledge/kept" in entry]


def test_lora_is_asked_with_its_adapters(tmp_path: Path) -> None:
    guard = quick(every=6, count=60)
    settings = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trained(tmp_path, guard, steps=6, rate=0.5, peft_config=settings)
    assert guard.history[-1]["kept_high"] < 0.8, "the weights below are as they were"


def test_learned_prompts_are_refused(tmp_path: Path) -> None:
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ModelError, match="a guard cannot ask a model with learned prompts"):
        trained(tmp_path, quick(count=20), steps=1, peft_config=settings)


def test_asking_takes_no_more_time_than_it_may(tmp_path: Path) -> None:
    guard = quick(every=1, most_time=0.0)
    trained(tmp_path, guard, steps=5)
    assert [entry["step"] for entry in guard.history] == [1, 5], "the first, and the one after the last step"


def test_false_stops_are_rare() -> None:
    """Trainings that lose nothing, asked twenty times each with draws of their own, and one that loses half."""
    guard = quick(stop_at=5.0)
    random = np.random.default_rng(0)

    class State:
        max_steps, log_history = 40, []
        global_step = 0

    class Control:
        should_training_stop = False

    def stopped(kept: float) -> bool:
        rate = np.where(random.random(240) < 0.5, random.beta(0.6, 0.8, 240), 0.0)[:, None].repeat(2, 1)
        guard._before = random.binomial(1, rate)
        for _ in range(20):
            control = Control()
            guard._note(State(), control, random.binomial(1, kept * rate))  # type: ignore[arg-type]
            if control.should_training_stop:
                return True
        return False

    assert sum(stopped(0.95) for _ in range(300)) <= 15
    assert sum(stopped(0.4) for _ in range(20)) == 20


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FactsError, match="2 templates"):
        KnowledgeGuard(templates=1)
    topics = tmp_path / "topics.json"
    topics.write_text(json.dumps({"RULES": {"question": "Who governs {subject}?", "templates": ["{subject} obeys"]}}))
    facts = tmp_path / "facts.jsonl"
    facts.write_text(json.dumps({"subject": "Rome", "relation": "RULES", "object": "Caesar"}) + "\n")
    with pytest.raises(FactsError, match="RULES has 1 statement"):
        KnowledgeGuard(str(facts), topics=topics)
