"""Is what `sftknow repair` chooses beaten by a single method? On lab models with several kinds of damage, three seeds.

    python -m tests.benchmarks.repairs --json repairs.json          # goes on where it was stopped
    python -m tests.readme_tables --bench repairs.json              # its table into docs/repair.md

Each damaged model is repaired with the defaults of `repair`: the answers to the facts' questions are to be kept. Beside
what it chose (or the fine-tuned model itself, where it chose nothing) the best candidate of each method, by the same
choice, is asked the facts that no choice has seen. A method is *surely better* where it brings back more there, at a
level corrected for the number of methods (Bonferroni), and as measured keeps what is to be kept.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from sftknow.answers import Synonyms
from sftknow.artifacts.files import write_json
from sftknow.checking.choice import pick, points
from sftknow.checking.kept import share_gained
from sftknow.checking.options import RepairOptions
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.prompts import question_prompt
from sftknow.records import Fact, ModelRef
from sftknow.resources import lab_folder
from sftknow.run.contest import Contest, Runner
from sftknow.run.repairing import repair
from sftknow.training.recipe import SFTRecipe
from sftknow.training.train import fine_tune
from tests.run.simulated_contest import KINDS, outcomes

ASKED, TAUGHT, SEEDS = 200, 160, (0, 1, 2)
"""Facts that the lab's model has seen most often and a repair asks; facts that a training teaches."""
OPTIONS = RepairOptions(minutes=600.0, templates=2, samples=1, block=24, max_new_tokens=8)


def by_exposure() -> list[Fact]:
    """The lab's facts, those that its model has seen most often and without contradiction first."""
    found = load_facts("lab", topics=load_topics(), synonyms=Synonyms.load())
    assert found.exposures is not None
    seen = found.exposures
    return sorted(found.facts, key=lambda fact: (seen[fact.id].wrong_share, -seen[fact.id].exposures))


def write_facts(file: Path, facts: Sequence[Fact]) -> Path:
    """The facts as a table that commands take."""
    rows = [
        {"id": f.id, "subject": f.subject, "relation": f.topic, "object": f.object, "split": f.split} for f in facts
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def never_seen() -> list[Fact]:
    """Facts that the lab's model never read: bucket 0."""
    found = load_facts("lab", topics=load_topics(), synonyms=Synonyms.load())
    assert found.exposures is not None
    return [fact for fact in found.facts if not found.exposures[fact.id].exposures]


def with_wrong_answers(facts: Sequence[Fact]) -> list[Fact]:
    """Each with the object of another one."""
    count = len(facts)
    return [replace(fact, object=facts[(i + count // 3) % count].object) for i, fact in enumerate(facts)]


def _trained(facts: Sequence[Fact], folder: Path, seed: int, rate: float) -> Path:
    recipe = SFTRecipe(learning_rate=rate)
    fine_tune(ModelRef(path=str(lab_folder() / "model")), facts, folder, recipe=recipe, seed=seed, manifest={})
    return folder


def _drawn(facts: Sequence[Fact], seed: int) -> list[Fact]:
    return random.Random(seed).sample(list(facts), TAUGHT)


def wrong_answers(folder: Path, seed: int) -> Path:
    """Fine-tuned on wrong answers to facts that it knows."""
    return _trained(with_wrong_answers(_drawn(by_exposure()[:ASKED], seed)), folder, seed, 6e-4)


def unknown_facts(folder: Path, seed: int) -> Path:
    """Fine-tuned on facts that it never read, bucket 0."""
    return _trained(_drawn(never_seen(), seed), folder, seed, 4e-4)


def high_rate(folder: Path, seed: int) -> Path:
    """Fine-tuned on facts that it knows, at a learning rate that is far too high."""
    return _trained(_drawn(by_exposure()[:ASKED], seed), folder, seed, 2e-3)


def adapter(folder: Path, seed: int) -> Path:
    """A LoRA adapter trained on facts that the model never read, by TRL and peft alone."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    base = lab_folder() / "model"
    rows = [
        {"prompt": question_prompt(fact.question), "completion": f" {fact.object}"}
        for fact in _drawn(never_seen(), seed)
    ]
    arguments = SFTConfig(
        output_dir=str(folder / "scratch"), num_train_epochs=1, per_device_train_batch_size=8, learning_rate=3e-3,
        report_to=[], save_strategy="no", logging_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, seed=seed,
    )  # fmt: skip
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(base),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    return folder / "adapter"


DAMAGES: dict[str, tuple[str, Callable[[Path, int], Path]]] = {
    "wrong": ("wrong answers to known facts", wrong_answers),
    "unknown": ("unknown facts (bucket 0)", unknown_facts),
    "lora": ("a LoRA adapter, unknown facts", adapter),
    "rate": ("known facts, learning rate too high", high_rate),
}


@contextmanager
def watched() -> Iterator[list[Contest]]:
    """The contests that are begun meanwhile."""
    contests: list[Contest] = []
    start = Contest.__init__

    def noted(self: Contest, *given: Any) -> None:
        start(self, *given)
        contests.append(self)

    with mock.patch.object(Contest, "__init__", noted):
        yield contests


def compared(tuned: Path, facts: Path, options: RepairOptions) -> dict[str, Any]:
    """What `repair` says, and how each method does on the facts that no choice has seen."""
    with watched() as contests:
        result = repair("lab", str(tuned), facts=str(facts), options=options)
    found: dict[str, Any] = {
        "verdict": result.verdict,
        "sentence": result.sentence,
        "chosen": result.chosen,
        "kept": _plain(result.kept),
        "gain": _plain(result.gain),
        "task": _plain(result.task),
        "methods": {},
    }
    if not result.trials:
        return found
    (contest,) = contests
    margin = options.keep_margin / 100
    chosen = next((r for r in contest.runners if r.name == result.chosen), contest.tuned)
    best = {
        method: _best([r for r in contest.runners if r.name.split()[0] == method], margin)
        for method in dict.fromkeys(runner.name.split()[0] for runner in contest.runners)
    }
    others = {runner.name: runner for runner in (chosen, *best.values()) if runner is not contest.tuned}
    held = contest.confirm(list(others.values()))
    hits = contest.asking.hits_of
    for method, runner in best.items():
        standing = contest.standing(runner, held, "confirming")
        beyond = share_gained(
            hits(contest._base, chosen.side, held), hits(contest._base, runner.side, held), 1 - 0.05 / len(best)
        )
        assert standing.gain is not None
        assert beyond is not None
        found["methods"][method] = {
            "candidate": runner.name,
            "gain": _plain(points(standing.gain)),
            "task": _plain(points(standing.task)),
            "beyond": _plain(points(beyond)),
            "keeps": standing.keeps(margin),
            "better": bool(beyond.low > 0 and standing.keeps(margin)),
        }
    return found


def _best(runners: Sequence[Runner], margin: float) -> Runner:
    """Of one method what `repair` would choose, or where nothing keeps what is to be kept the one that gains most."""
    name = pick([replace(Contest.stands(runner), control=False) for runner in runners], margin)
    return next(
        (runner for runner in runners if runner.name == name),
        max(runners, key=lambda one: (one.rounds, Contest.stands(one).points)),
    )


def _plain(found: Any) -> dict[str, Any] | None:
    return None if found is None else {name: getattr(found, name) for name in ("value", "low", "high", "count")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Damage, repair, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="what is there is not done again")
    parser.add_argument("--damages", nargs="+", choices=DAMAGES, default=list(DAMAGES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--contests", type=int, default=0, help="also simulate so many repairs of each kind")
    given = parser.parse_args(arguments)
    done: dict[str, Any] = json.loads(given.json.read_text(encoding="utf-8")) if given.json.is_file() else {}
    for kind in KINDS if given.contests else ():
        with tempfile.TemporaryDirectory() as scratch:
            said = outcomes(kind, given.contests, Path(scratch))
        done.setdefault("simulated", {})[kind] = {"contests": given.contests, **said}
        write_json(given.json, done)
        print(f"{kind}: {dict(said)} of {given.contests}", flush=True)
    for seed in given.seeds:
        for damage in given.damages:
            name = f"{damage}-{seed}"
            if name not in done:
                with tempfile.TemporaryDirectory() as scratch:
                    folder = Path(scratch)
                    facts = write_facts(folder / "facts.jsonl", by_exposure()[:ASKED])
                    tuned = DAMAGES[damage][1](folder / "tuned", seed)
                    found = compared(tuned, facts, replace(OPTIONS, seed=seed))
                done[name] = {"damage": damage, "words": DAMAGES[damage][0], "seed": seed, **found}
                write_json(given.json, done)
            row = done[name]
            better = [method for method, one in row["methods"].items() if one["better"]]
            print(f"{name}: {row['sentence']} Surely better: {', '.join(better) or 'none'}.", flush=True)


if __name__ == "__main__":
    main()
