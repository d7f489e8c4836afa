"""The YAML files: lm-eval skips a file that it cannot read without a word, so the whole list is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from sftknow.evaluation.tasks import task_names
from sftknow.records import BUCKETS, SPLITS
from sftknow.resources import task_folder


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(task_folder()), include_defaults=False)


GENERAL = ["sftknow_xsum"]
"""Tasks beside the cbqa_mastery ones (the paper's Table 5)."""


def test_exact_list_of_tasks(manager: TaskManager) -> None:
    leaves = [
        f"cbqa_mastery_{split}_bucket_{bucket}"
        for split in ("train", "dev", "test", "testood")
        for bucket in (0, 1, 2, 3, 4)
    ]
    assert manager.all_subtasks == sorted([*leaves, *GENERAL])
    assert manager.all_groups == sorted(
        ["cbqa_mastery", "cbqa_mastery_train", "cbqa_mastery_dev", "cbqa_mastery_test", "cbqa_mastery_testood"]
    )
    assert manager.all_tags == []


def test_every_yaml_file_is_a_task(manager: TaskManager) -> None:
    names = {path.stem for path in Path(task_folder()).glob("cbqa_mastery*.yaml")}
    assert names == set(manager.all_tasks) - set(GENERAL)
    assert task_names() == sorted([*names, *GENERAL])


def test_groups_and_leaves(tiny_dataset: Path) -> None:
    manager = TaskManager(
        include_path=str(task_folder()),
        include_defaults=False,
        metadata={"mastery_dataset": str(tiny_dataset), "prompt_prefix": "", "fact_ids": ["P17/train/0"]},
    )
    loaded = manager.load(["cbqa_mastery", "cbqa_mastery_dev", "cbqa_mastery_train"])
    assert loaded["group_map"]["cbqa_mastery"] == ["cbqa_mastery_test", "cbqa_mastery_testood"]
    for split in SPLITS:
        assert loaded["group_map"][f"cbqa_mastery_{split}"] == [f"cbqa_mastery_{split}_bucket_{b}" for b in BUCKETS]
        aggregated = loaded["groups"][f"cbqa_mastery_{split}"].aggregate_metric_list
        assert [(a.metric, a.weight_by_size) for a in aggregated] == [
            ("acc", False),
            ("acc_word", False),
            ("exact_match", False),
        ]
        for bucket in BUCKETS:
            task = loaded["tasks"][f"cbqa_mastery_{split}_bucket_{bucket}"]
            assert task.config.dataset_kwargs == {"mastery_split": split, "mastery_bucket": bucket}


def test_leaf_is_greedy_with_sixteen_tokens_and_no_stop_string(tiny_dataset: Path) -> None:
    manager = TaskManager(
        include_path=str(task_folder()),
        include_defaults=False,
        metadata={"mastery_dataset": str(tiny_dataset), "prompt_prefix": "<s>"},
    )
    task = manager.load(["cbqa_mastery_test_bucket_3"])["tasks"]["cbqa_mastery_test_bucket_3"]
    assert task.config.generation_kwargs == {"do_sample": False, "temperature": 0.0, "max_gen_toks": 16, "until": []}
    assert not task.config.num_fewshot
    document = task.eval_docs[0]
    assert task.fewshot_context(document, num_fewshot=0) == f"<s><|question|> {document['question']} <|answer|>"
