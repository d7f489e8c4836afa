"""A run directory made in code, with numbers that are known: no model is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.files import write_json, write_text
from sftknow.artifacts.manifests import write_manifest
from sftknow.artifacts.mastery_data import write_mastery_data
from sftknow.records import (
    BUCKETS,
    SPLITS,
    EvalRun,
    Fact,
    GradedFact,
    GroupDivergence,
    LevelStatistics,
    Mastery,
    MetricValue,
    ParameterChange,
    TokenDivergence,
    to_json,
)

LEVELS = ("1%", "5%", "20%", "60%")
MODULES = {"mlp.down_proj": 3072, "mlp.up_proj": 3072, "self_attn.q_proj": 1024, "self_attn.k_proj": 512}
LAYERS = 4


def group(mean: float, count: int) -> GroupDivergence:
    return GroupDivergence(
        mean=mean, low=mean - 0.05, high=mean + 0.06, full_mean=1.4 * mean, top_changed=0.3, count=count, skipped=7
    )


def moved_facts(mean: float) -> list[dict[str, object]]:
    """Rows of examples.parquet: twelve of bucket 4, one infinite, and one of another bucket that moved further."""
    kls = [*(mean * place / 6 for place in range(1, 12)), math.inf, 99.0]
    return [
        {
            "fact_id": f"P36/test/{i}",
            "bucket": 4 if i < 12 else 2,
            "prompt": f"The capital of Land {i} is",
            "completion": f" Town {i}, a city",
            "base_top": " Town",
            "tuned_top": " City" if i % 2 else "\n",
            "answer_token": " Town",
            "base_answer_rank": 1,
            "tuned_answer_rank": i + 1,
            "kl": kl,
        }
        for i, kl in enumerate(kls)
    ]


def facts(per_bucket: int, seed: int = 0) -> list[GradedFact]:
    """Graded facts of every split, `per_bucket` in each bucket; training has three times as many."""
    generator = np.random.default_rng(seed)
    rows = []
    for split in SPLITS:
        for bucket in BUCKETS:
            for i in range(per_bucket * (3 if split == "train" else 1)):
                topic = "P112" if split == "testood" else "P17"
                fact = Fact(
                    id=f"{topic}/{split}/{bucket}-{i}",
                    topic=topic,
                    subject=f"Subject {bucket}-{i}",
                    object="Arden",
                    question="Which country?",
                    split=split,
                )
                hits = 0 if bucket == 0 else int(generator.integers(21 * (bucket - 1) // 4 * 4 + 1, 21 * bucket))
                mastery = Mastery(
                    fact_id=fact.id,
                    template_hits=(hits,),
                    template_tries=(84,),
                    hits=hits,
                    tries=84,
                    bucket=bucket,
                    low=0.0,
                    high=1.0,
                    edge=i % 5 == 0,
                )
                rows.append(GradedFact(fact=fact, mastery=mastery))
    return rows


def chance(bucket_trained: int | None, size: int, bucket: int, restored: float = 0.0) -> float:
    """The made-up truth: probability of a right answer. More data hurts bucket 0; a little restoration heals it."""
    if bucket_trained is None:
        return 0.02 + 0.04 * bucket
    drift = (0.16, 0.08, 0.0, 0.02, 0.03)[bucket_trained] * math.log(size / 50)
    healed = drift * (1 - min(1.0, 4 * restored)) + max(0.0, restored - 0.3) * 1.6
    return float(np.clip((0.02, 0.25, 0.55, 0.75, 0.92)[bucket] - healed, 0.0, 1.0))


def evaluation(
    folder: Path, name: str, rows: Sequence[GradedFact], right: Mapping[int, float], splits: Sequence[str], seed: int
) -> None:
    """Write ``evaluation/<name>`` with questions drawn by the probabilities and scores worked out from them."""
    generator = np.random.default_rng(seed)
    base_luck = np.random.default_rng(99).random(len(rows))  # the same questions are hard for every model
    questions: list[dict[str, Any]] = []
    for row, luck in zip(rows, base_luck, strict=True):
        if row.fact.split not in splits:
            continue
        acc = bool(0.8 * luck + 0.2 * generator.random() < right[row.mastery.bucket])
        questions.append(
            {
                "fact_id": row.fact.id,
                "split": row.fact.split,
                "bucket": row.mastery.bucket,
                "output": "Arden" if acc else "Belmora",
                "acc": acc,
                "acc_word": acc,
                "exact_match": acc and bool(generator.random() < 0.9),
            }
        )
    metrics = []
    for split in splits:
        for metric in ("acc", "acc_word", "exact_match"):
            leaves = []
            for bucket in BUCKETS:
                values = [float(q[metric]) for q in questions if q["split"] == split and q["bucket"] == bucket]
                error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
                task = f"cbqa_mastery_{split}_bucket_{bucket}"
                leaves.append(
                    MetricValue(task=task, metric=metric, value=float(np.mean(values)), stderr=error, count=len(values))
                )
            metrics += leaves
            metrics.append(
                MetricValue(
                    task=f"cbqa_mastery_{split}",
                    metric=metric,
                    value=sum(leaf.value for leaf in leaves) / 5,
                    stderr=math.sqrt(sum(leaf.stderr**2 for leaf in leaves)) / 5,
                    count=sum(leaf.count for leaf in leaves),
                )
            )
    target = folder / "evaluation" / name
    target.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(questions), target / "questions.parquet")
    scores = to_json(EvalRun(model=name, dataset_fingerprint="f" * 64, graded_by="lab", metrics=tuple(metrics)))
    del scores["questions"]
    for metric in scores["metrics"]:  # JSON has no NaN: what does not exist is null, as the evaluation room writes it
        metric["stderr"] = None if math.isnan(metric["stderr"]) else metric["stderr"]
    write_json(target / "scores.json", scores)


def change(size: int, seed: int) -> ParameterChange:
    """A change whose first layers and down projections are enriched."""
    generator = np.random.default_rng(seed)
    by_module = {m: LAYERS * n for m, n in MODULES.items()}
    by_layer = {str(i): sum(MODULES.values()) for i in range(LAYERS)}
    elements = sum(by_module.values())
    changed = elements // 3 + size

    def spread(total: int, sizes: Mapping[str, int], tilt: float) -> dict[str, int]:
        weights = np.array(list(sizes.values()), dtype=float) * np.linspace(1 + tilt, 1 - tilt, len(sizes))
        counts = np.floor(total * weights / weights.sum()).astype(int)
        counts[0] += total - counts.sum()
        return {key: int(count) for key, count in zip(sizes, counts, strict=True)}

    levels = []
    for level in LEVELS:
        share = float(level[:-1]) / 100
        selected = math.floor(elements * share)
        levels.append(
            LevelStatistics(
                level=level,
                selected=selected,
                selected_unchanged=max(0, selected - changed),
                concentration=min(1.0, 0.9 * share**0.08 + 0.01 * generator.random()),
                concentration_nonzero_base=min(1.0, share**0.3),
                by_layer=spread(selected, by_layer, 0.3 * (1 - share)),
                by_module=spread(selected, by_module, 0.2 * (1 - share)),
            )
        )
    return ParameterChange(
        region="transformer",
        elements=elements,
        changed=changed,
        elements_by_layer=by_layer,
        elements_by_module=by_module,
        levels=tuple(levels),
        histogram=((1e-4, changed // 2), (1e-3, changed - changed // 2)),
    )


def synthetic_run(
    folder: Path,
    *,
    buckets: Sequence[int] = BUCKETS,
    sizes: Sequence[int] = (60, 240),
    seeds: Sequence[int] = (0,),
    restored: Sequence[str] | None = None,
    per_bucket: int = 40,
    splits: Sequence[str] = ("dev", "test", "testood"),
) -> Path:
    """Write a whole run directory and return it. `restored` names the cells restored; None takes the worst one."""
    rows = facts(per_bucket)
    write_text(
        folder / "recipe.yaml", "name: made-up\ngrid:\n  buckets: [0, 1]\n  sizes: [60, all]\nsft:\n  lr: 0.0003\n"
    )
    versions = {"torch": "2.13.0", "transformers": "5.23.0"}
    write_json(
        folder / "provenance.json", {"versions": versions, "seed": 0, "model": {"path": "lab", "revision": None}}
    )
    write_mastery_data(
        folder / "mastery" / "dataset", rows, {"graded_by": "lab <model>", "policy": {"samples": 4, "temperature": 0.7}}
    )
    write_json(folder / "stages" / "mastery.json", {"key": "k", "seconds": 12.5})
    generator = np.random.default_rng(1)
    exposures = [0 if r.mastery.hits == 0 else int(1 + r.mastery.rate * 60 * generator.random()) for r in rows]
    table = {
        "fact_id": [r.fact.id for r in rows],
        "exposures": pa.array(exposures, pa.int32()),
        "templates_seen": [[0, 1]] * len(rows),
        "wrong_share": [float(generator.random() < 0.4) * 0.4 * float(generator.random()) for _ in rows],
        "question_exposures": pa.array([0] * len(rows), pa.int32()),
    }
    (folder / "facts").mkdir()
    pq.write_table(pa.table(table), folder / "facts" / "exposures.parquet")
    evaluation(folder, "base", rows, {b: chance(None, 0, b) for b in BUCKETS}, splits, 0)
    names = [(f"b{b}-n{n}-s{s}", b, n, s) for b in buckets for n in sizes for s in seeds]
    for place, (name, bucket, size, seed) in enumerate(names):
        evaluation(folder, name, rows, {b: chance(bucket, size, b) for b in BUCKETS}, splits, 10 + place)
        curve = [{"step": i + 1, "loss": 3 * math.exp(-i / 5) + 0.1 * bucket} for i in range(size // 8)]
        write_json(folder / "models" / name / "loss.json", curve)
        manifest = {
            "base": {"path": "../base", "revision": None},
            "sft": {"size": size, "recipe": {"learning_rate": 3e-4}},
        }
        write_manifest(folder / "models" / name, "model", manifest)
        mean = 0.3 + (0.3, 0.2, 0.1, 0.1, 0.12)[bucket] * math.log(size / 50) + 0.01 * seed
        moved = TokenDivergence(
            mean=mean,
            low=mean - 0.05,
            high=mean + 0.06,
            full_mean=mean * 1.4,
            full_reverse_mean=mean * 1.7,
            base_mass=0.61,
            tuned_mass=0.93,
            top_changed=0.3,
            base_answer_probability=0.5,
            tuned_answer_probability=0.7,
            base_answer_first=0.6,
            tuned_answer_first=0.8,
            base_dummy_mass=0.2,
            tuned_dummy_mass=0.01,
            count=31,
            bucket=4,
            k=10,
            window=3,
            base_prompt="statement",
            tuned_prompt="question",
            skipped={"answer starts late": 7},
            by_topic={"P36": group(mean, 31)},
            by_bucket={"2": group(2 * mean, 9), "4": group(mean, 31)},
        )
        # Shown the base's own text, a model of few facts has hardly moved: the other order of sizes.
        same = replace(moved, tuned_prompt="statement", mean=mean / 9, low=mean / 10, high=mean / 8)
        write_json(folder / "divergence" / name / "divergence.json", replace(moved, beside=same))
        pq.write_table(pa.Table.from_pylist(moved_facts(mean)), folder / "divergence" / name / "examples.parquet")
        write_json(folder / "changes" / name / "changes.json", change(size, place))
        plan = {"strategy": "top", "epsilon": 1e-8, "arithmetic": "float32", "region": "transformer"}
        write_json(folder / "changes" / name / "plan.json", plan)
    worst = f"b{buckets[0]}-n{sizes[-1]}-s{seeds[0]}"
    by_name = {name: (bucket, size) for name, bucket, size, _ in names}
    for draw, name in enumerate(restored if restored is not None else (worst,)):
        bucket, size = by_name[name]
        for place, level in enumerate(LEVELS):
            right = {b: chance(bucket, size, b, float(level[:-1]) / 100) for b in BUCKETS}
            evaluation(folder, f"{name}@{level.replace('%', 'pct')}", rows, right, splits, 5000 + 10 * draw + place)
    if restored is None or worst in restored:
        write_json(folder / "choice.json", {"cell": worst, "level": "20%", "chosen_on": "dev", "dev": {}, "test": {}})
    return folder


def add_extras(folder: Path, *, per_bucket: int, cell: str = "b0-n240-s0") -> Path:
    """Add to a synthetic run what no run makes unasked: mixed draws, LoRA, an instruct model, layer ranges, training
    facts, other tasks. Returns the folder."""
    rows = facts(per_bucket)
    for place, (name, bucket) in enumerate((("mixed-n60-s0", 3), ("mixed-n240-s0", 2), ("lora-n240-s0", 4))):
        evaluation(
            folder, name, rows, {b: chance(bucket, 240, b) for b in BUCKETS}, ("dev", "test", "testood"), 700 + place
        )
    evaluation(folder, "instruct", rows, {b: chance(1, 60, b) for b in BUCKETS}, ("dev", "test", "testood"), 710)
    for place, layers in enumerate(("0-1", "2-3")):
        right = {b: chance(0, 240, b, 0.9 if layers == "0-1" else 0.0) for b in BUCKETS}
        evaluation(folder, f"{cell}@layers-{layers}", rows, right, ("test",), 720 + place)
    for name in (cell, f"{cell}@5pct"):
        scores = folder / "evaluation" / name / "scores.json"
        content = json.loads(scores.read_text())
        share = 0.75 if "@" in name else 0.5
        for task in ("cbqa_mastery_train", "cbqa_mastery_train_bucket_0"):
            content["metrics"].append({"task": task, "metric": "acc", "value": share, "stderr": 0.05, "count": 60})
        write_json(scores, content)
    row = {"rouge1": 0.4, "rouge2": 0.2, "rougeL": 0.3}
    xsum = [
        {
            "level": level,
            "restored": 10,
            "metrics": [
                {"name": k, "lm_eval_name": k, "value": v * scale, "stderr": 0.01, "count": 50} for k, v in row.items()
            ],
        }
        for level, scale in (("base", 0.1), ("0%", 1.0), ("5%", 1.1))
    ]
    task = {"headline": "rouge1", "few_shot": 0, "limit": 50, "trained_on": 240, "rows": xsum}
    write_json(
        folder / "ability" / "general_ability.json", {"sftknow": 1, "kind": "general-ability", "tasks": {"xsum": task}}
    )
    return folder
