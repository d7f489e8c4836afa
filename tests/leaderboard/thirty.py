"""A Hub with one graded data set and thirty-odd models: honest, wrong, stale and hostile."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from sftknow.artifacts.mastery_data import MasteryData
from sftknow.artifacts.scores import SCHEMA
from sftknow.artifacts.tables import to_table
from sftknow.records import BUCKETS, QuestionResult, Split
from tests.hub_server import HubServer
from tests.tiny import tiny_mastery_data

DATA = "org/facts-graded"
SPLITS: tuple[Split, ...] = ("test", "testood")
PER_BUCKET = 60


class Hub:
    """Puts a data set, models and results onto a server, as their owners would."""

    def __init__(self, server: HubServer, folder: Path) -> None:
        self.server = server
        self.old = self._data(folder / "old", per_bucket=20)
        self.first = server.put("dataset", DATA, self._files(folder / "old"))
        self.data = self._data(folder / "data", per_bucket=PER_BUCKET)
        self.commit = server.put("dataset", DATA, self._files(folder / "data"))

    @staticmethod
    def _data(folder: Path, *, per_bucket: int) -> MasteryData:
        return MasteryData(tiny_mastery_data(folder, per_bucket=per_bucket, graded_by="org/base@" + "a" * 40))

    @staticmethod
    def _files(folder: Path) -> dict[str, bytes]:
        card = b"---\nlicense: mit\ntags: [sftknow]\n---\n# facts\n"
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return {**files, "README.md": card}

    def answers(self, rate: float, *, seed: int = 0, splits: Sequence[Split] = SPLITS) -> list[QuestionResult]:
        """Answers of which about that share is right; models of one seed find the same questions hard."""
        found = []
        for split in splits:
            for bucket in BUCKETS:
                for row in self.data.bucket(split, bucket):
                    hard = random.Random(f"{seed} {row.fact.id}").random()
                    right = hard < rate
                    output = f" {row.fact.object}" if right else " nowhere"
                    verdict = {"acc": right, "acc_word": right, "exact_match": right}
                    found.append(
                        QuestionResult(fact_id=row.fact.id, split=split, bucket=bucket, output=output, **verdict)
                    )
        return found

    def model(
        self,
        repo_id: str,
        told: Mapping[str, Any] | Sequence[QuestionResult] | bytes | None,
        *,
        commit: str | None = "",
        fingerprint: str | None = "",
        manifest: bool = True,
        weights: bytes | None = None,
        notes: str | None = None,
        private: bool = False,
    ) -> str:
        """A model with what it tells of itself in ``.eval_results``; "" stands for what is right."""
        published = repo_id.encode()
        files = {"model.safetensors": weights or published, "config.json": b"{}"}
        files["README.md"] = f"---\ndatasets: [{DATA}]\ntags: [sftknow]\n---\n# a model\n".encode()
        results = told if isinstance(told, bytes) else None
        if results is None and told is not None:
            values = told if isinstance(told, Mapping) else percent(told)
            results = eval_results(values, self.commit if commit == "" else commit, notes)
        if results is not None:
            files[".eval_results/cbqa_mastery.yaml"] = results
        if manifest:
            hashes = {"model.safetensors": sha256(published)}
            data = {"repo": DATA, "fingerprint": self.data.fingerprint if fingerprint == "" else fingerprint}
            files["sftknow.json"] = as_json(kind="model", sha256=hashes, mastery_dataset=data)
        return self.server.put("model", repo_id, files, private=private)

    def results(
        self,
        repo_id: str,
        models: Mapping[str, tuple[str, str, Sequence[QuestionResult]]],
        *,
        fingerprint: str | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """A run's published results: name in the run → (repository, branch, answers)."""
        files = {f"evaluation/{n}/questions.parquet": parquet(answers) for n, (_, _, answers) in models.items()}
        files["README.md"] = b"---\ntags: [sftknow, evaluation-results]\n---\n"
        places = {name: {"repo": repo, "branch": branch} for name, (repo, branch, _) in models.items()}
        data = {"repo": DATA, "fingerprint": fingerprint or self.data.fingerprint}
        named = {"kind": "results", "models": places, "mastery_dataset": data, **(more or {})}
        files["sftknow.json"] = as_json(**named)
        self.server.put("dataset", repo_id, files)

    def branch(self, repo_id: str, name: str) -> None:
        """A branch with what main holds now."""
        repo = self.server.repos["model", repo_id]
        repo.branches[name] = repo.branches["main"]


def percent(answers: Sequence[QuestionResult]) -> dict[str, float]:
    """What a model with these answers tells: percentages with two decimals, of the buckets and their means."""
    found: dict[str, float] = {}
    for split in sorted({answer.split for answer in answers}):
        means = []
        for bucket in BUCKETS:
            right = [answer.acc for answer in answers if (answer.split, answer.bucket) == (split, bucket)]
            means.append(sum(right) / len(right))
            found[f"cbqa_mastery_{split}_bucket_{bucket}"] = round(100 * means[-1], 2)
        found[f"cbqa_mastery_{split}"] = round(100 * sum(means) / len(means), 2)
    return found


def eval_results(values: Mapping[str, Any], commit: str | None, notes: str | None = None) -> bytes:
    entries = []
    for task, value in values.items():
        revision = {"revision": commit} if commit else {}
        entry: dict[str, Any] = {"dataset": {"id": DATA, "task_id": task, **revision}, "value": value}
        entries.append({**entry, **({"notes": notes} if notes else {})})
    return yaml.safe_dump(entries).encode()


def parquet(answers: Sequence[QuestionResult]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(to_table(answers, SCHEMA), buffer)
    return buffer.getvalue()


def as_json(**content: Any) -> bytes:
    return json.dumps({"sftknow": 1, **content}).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


HOSTILE = "\x1b[31m<script>alert(1)</script>"
"""What would colour a terminal and run on a page."""


def fill(hub: Hub) -> dict[str, str]:
    """Put thirty-five models there; return why those that may not count do not, by repository."""
    for i in range(10):
        hub.model(f"org/told-{i}", hub.answers(0.3 + 0.03 * i, seed=i))
    run = {}
    for i in range(6):
        answers = hub.answers(0.2 + 0.1 * i, seed=100)
        hub.model(f"org/answered-{i}", answers)
        run[f"b{i}-n240-s0"] = (f"org/answered-{i}", "main", answers)
    hub.branch("org/answered-5", "restore-5pct")
    run["b5-n240-s0@5pct"] = ("org/answered-5", "restore-5pct", hub.answers(0.7, seed=100))
    hub.results("org/run-results", run)
    fair = hub.answers(0.5, seed=3)
    means = {task: value for task, value in percent(fair).items() if "bucket" not in task}
    hub.model("other/mean-only", means, manifest=False)
    hub.model("other/base", None, manifest=False)
    hub.results("other/results", {"base": ("other/base", "main", hub.answers(0.1, seed=7))})
    hub.results("stranger/results", {"x": ("other/mean-only", "main", hub.answers(0.0))})
    hub.model("org/hidden", hub.answers(0.99), private=True)
    hub.model("org/silent", None)
    lie = hub.answers(0.4, seed=9)
    hub.model("bad/liar", {**percent(lie), "cbqa_mastery_test": 88.0})
    boast, truth = hub.answers(0.9, seed=11), hub.answers(0.2, seed=11)
    hub.model("bad/answers-say-less", boast)
    hub.results("bad/results", {"m": ("bad/answers-say-less", "main", truth)})
    claimed, given = (f"{percent(answers)['cbqa_mastery_test']:.2f} %" for answers in (boast, truth))
    hub.model("bad/shares", {task: value / 100 for task, value in percent(fair).items()})
    hub.model("bad/too-much", {**percent(fair), "cbqa_mastery_test_bucket_4": 140.0})
    hub.model("bad/text", {**percent(fair), "cbqa_mastery_test": HOSTILE})
    hub.model("bad/part", fair, notes="percent of 20 questions whose greedy answer contains the object")
    hub.model("bad/other-weights", fair, weights=b"trained further")
    hub.model("bad/stale", fair, commit=hub.first, fingerprint=hub.old.fingerprint)
    hub.model("bad/two-versions", fair, commit=hub.first)
    hub.model("bad/nowhere", fair, commit="d" * 40, fingerprint=None)
    hub.model("bad/no-version", fair, commit=None, manifest=False)
    hub.model("bad/yaml", b"- {dataset: [\x1b[31m")
    hub.model("bad/deep", b"[" * 20_000)
    hub.model("bad/long", b"# " + b"x" * 100_000)
    hub.model("bad/mapping", b"dataset: {id: org/facts-graded}\nvalue: 99\n")
    hub.model("bad/only-dev", {"cbqa_mastery_dev": 55.0})
    return {
        "bad/liar": "its mean on test is not that of its buckets",
        "bad/answers-say-less": f"it tells {claimed} on test, and its published answers give {given}",
        "bad/shares": "a value on test is impossible: no number of right answers out of 60 gives it",
        "bad/too-much": "a value is no percentage between 0 and 100",
        "bad/text": "a value is no percentage between 0 and 100",
        "bad/part": "scored on 20 of 60 questions of test",
        "bad/other-weights": "its weights are others than those that were published with its results",
        "bad/stale": "it was scored on another version of the data set",
        "bad/two-versions": "it was scored on another version of the data set",
        "bad/nowhere": "it names a version of the data set that is not there",
        "bad/no-version": "it does not say which version of the data set it was scored on",
        "bad/yaml": "a results file of it is no YAML",
        "bad/deep": "a results file of it is no YAML",
        "bad/long": "a results file of it is too long to be one",
        "bad/mapping": "a results file of it is not a list of results",
        "bad/only-dev": "it has no results on test",
    }
