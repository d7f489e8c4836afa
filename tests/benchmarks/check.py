"""`sftknow check` beside two plain `lm_eval` runs over the same facts: seconds and peak memory, in one run.

    python -m tests.benchmarks.check --json check.json --docs

The base is the lab's model, the tuned one the same with noise on its weights; the facts are the lab's, as a table. Both
sides start from nothing, on the CPU in float32. `lm_eval` asks every fact once, greedily, as ``Question: … Answer:``,
at most 32 tokens. `check` runs with its defaults: statements with samples, until its verdict stands, the questions, and
the lost facts again. So the two say different things of the same facts; what is compared is what the person waits for.
With ``--docs`` the figures are written into docs/check.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs" / "check.md"
_PART = re.compile(r"(<!-- from tests\.benchmarks\.check -->\n).*?(<!-- end -->)", re.DOTALL)

TASK = """
task: plain_facts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{object}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 32, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}}
"""


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    peak_mb: float
    """Largest resident memory of its process."""


def run(command: Sequence[str], *, codes: Sequence[int] = (0,)) -> Cost:
    """Run a command from nothing."""
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as scratch:
        caches = {"SFTKNOW_CACHE": f"{scratch}/sftknow", "HF_DATASETS_CACHE": f"{scratch}/datasets"}
        log = Path(scratch) / "log"
        start = time.perf_counter()
        with log.open("wb") as out:
            process = subprocess.Popen(command, env={**os.environ, **offline, **caches}, stdout=out, stderr=out)
            _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if os.waitstatus_to_exitcode(status) not in codes:
            raise SystemExit(f"{' '.join(command)}\n{log.read_text()[-3000:]}")
    return Cost(seconds, used.ru_maxrss * 1024 / 1e6)


def make(folder: Path, limit: int) -> tuple[Path, Path, int]:
    """The tuned model, the table of facts, and how many there are."""
    from sftknow.answers import Synonyms
    from sftknow.facts.sources import load_facts
    from sftknow.facts.topics import load_topics
    from tests.tiny import noisy_lab

    tuned, table = folder / "tuned", folder / "facts.jsonl"
    noisy_lab(tuned, 0.2)
    facts = load_facts("lab", topics=load_topics(), synonyms=Synonyms.load(), limit=limit).facts
    rows = [
        {"id": f.id, "relation": f.topic, "subject": f.subject, "object": f.object, "question": f.question}
        for f in facts
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tuned, table, len(rows)


def words(figures: dict[str, object]) -> str:
    """The figures as Markdown."""
    check, one, two = (figures[name] for name in ("check", "lm_eval_base", "lm_eval_tuned"))
    assert isinstance(check, dict)
    assert isinstance(one, dict)
    assert isinstance(two, dict)
    together, most = one["seconds"] + two["seconds"], max(one["peak_mb"], two["peak_mb"])
    return "\n".join(
        [
            f"| {figures['facts']:,} facts of the lab, two models of 3.8 M parameters | seconds | peak memory |",
            "| --- | ---: | ---: |",
            f"| `sftknow check` | {check['seconds']:.0f} | {check['peak_mb']:.0f} MB |",
            f"| two `lm_eval` runs, one after the other | {together:.0f} | {most:.0f} MB |",
            "",
            f"That is {check['seconds'] / together:.2f} times the time and "
            f"{check['peak_mb'] / most:.2f} times the memory of plain questions "
            "(`python -m tests.benchmarks.check --docs`, one run on the CPU).",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=800, help="training facts; of each other split a quarter")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--docs", action="store_true", help="write the figures into docs/check.md")
    given = parser.parse_args(arguments)
    from sftknow.resources import lab_folder

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tuned, table, count = make(folder, given.limit)
        (folder / "tasks").mkdir()
        (folder / "tasks" / "plain_facts.yaml").write_text(TASK.format(file=table), encoding="utf-8")
        costs = {}
        for name, model in (("lm_eval_base", lab_folder() / "model"), ("lm_eval_tuned", tuned)):
            command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "plain_facts", "--device", "cpu"]
            command += ["--model_args", f"pretrained={model},dtype=float32", "--batch_size", "64"]
            costs[name] = run([*command, "--include_path", str(folder / "tasks"), "--output_path", str(folder / name)])
        command = [sys.executable, "-m", "sftknow", "check", "lab", str(tuned), "--facts", str(table)]
        command += ["--device", "cpu", "--json", str(folder / "check.json")]
        costs["check"] = run(command, codes=(0, 1, 3))
        said = json.loads((folder / "check.json").read_text(encoding="utf-8"))
    figures = {"facts": count, "asked": len(said["facts"]), "verdict": said["sentence"]}
    figures |= {name: {key: round(value, 1) for key, value in asdict(cost).items()} for name, cost in costs.items()}
    text = words(figures)
    print(text)
    print(f"\ncheck asked {figures['asked']:,} of them: {figures['verdict']}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if given.docs:
        page = DOCS.read_text(encoding="utf-8")
        DOCS.write_text(_PART.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page), encoding="utf-8")


if __name__ == "__main__":
    main()
