"""Repair a fine-tuned model that forgot; used by `sftknow repair` and `sftknow.repair`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sftknow.artifacts.repairs import Estimate, RepairResult, Trial
from sftknow.artifacts.stages import RunDirectory
from sftknow.checking import repair_words as words
from sftknow.checking.choice import best_control, confirmed, hopeless, more_facts, pick, points
from sftknow.checking.kept import Kept, verdict
from sftknow.checking.options import RepairOptions
from sftknow.checkpoints.adapters import is_adapter
from sftknow.errors import CheckpointError
from sftknow.facts.sources import balanced
from sftknow.models.options import ModelOptions
from sftknow.models.references import restored_manifest
from sftknow.models.resolving import BaseModel
from sftknow.parameters.adapter_out import check_refactored, refactored, write_refactored
from sftknow.parameters.between import all_weights
from sftknow.parameters.candidates import Candidate, Candidates, grid, write_candidate, write_candidate_patch
from sftknow.parameters.options import MethodOptions
from sftknow.parameters.outputs import refuse_output
from sftknow.parameters.pairs import pair_checkpoints
from sftknow.parameters.patch import refuse_patch_place
from sftknow.recipes.schema import FactsSection
from sftknow.resources import cache_folder
from sftknow.run.asking import Asking, Say
from sftknow.run.contest import Contest, Runner
from sftknow.run.keeping import keep_of
from sftknow.run.local_cards import card_writer
from sftknow.run.sides import CHAT_BASE, Material, load_sides, resolve_sides

Form = Literal["model", "patch", "adapter"]


def repair(
    base: str | Path,
    tuned: str | Path,
    *,
    out: str | Path | None = None,
    form: Form = "model",
    keep: str | Path | None = None,
    facts: str | Path | FactsSection = "quick",
    options: RepairOptions | None = None,
    methods: MethodOptions | None = None,
    running: ModelOptions | None = None,
    say: Say = lambda line: print(line, file=sys.stderr, flush=True),
) -> RepairResult:
    """Bring back what fine-tuning made a model forget, as far as what it was taught allows.

    Both models are asked facts in the same statements with the same random numbers, as `check` does. Of the facts that
    the base knows one half is there to choose: one loaded model is moved from candidate to candidate, round after round
    the better half of them goes on, and the one that brings back most among those that keep the task is chosen. The
    other half, which no choice has seen, tells whether it helps, and whether more than restoration at random.

    Args:
        base: a folder, ``org/name`` or ``org/name@revision`` on the Hub, or ``lab``.
        tuned: the same, or a LoRA adapter of ``base``.
        out: where the repaired model goes, where one surely helps; a file for a patch. None writes nothing.
        form: a whole ``model``, a ``patch`` of the fine-tuned one, or for an adapter an ``adapter`` of the same rank.
        keep: what must not be lost: a JSONL file of prompts and answers, a task of lm-eval or its YAML file. None keeps
            the answers to the facts' questions.
        facts: as for `check`.
        options: how long, and the margins.
        methods: which candidates.
        running: device, dtype, batch size of a task.
        say: gets a line now and then.

    Raises:
        ModelError, CheckpointError, HubError: a model cannot be loaded or compared, or the tuned one was not made from
            the base; ``out`` is something else.
        FactsError, GeneralTaskError: facts, or what is to be kept, cannot be used.
        RunError: another process does the same repair.
    """
    options, methods, running = options or RepairOptions(), methods or MethodOptions(), running or ModelOptions()
    base, tuned, out = str(base), str(tuned), Path(out).expanduser() if out else None
    keep = str(keep) if keep else None
    wanted = grid(methods.methods, methods.strengths)
    models, notes = resolve_sides(base, tuned, running)
    folders = [Path(model.ref.path) for model in models]
    _check_out(out, form, folders)
    material = Material.load(facts)
    found = _Found(base, tuned, material.source, options, notes)
    if models[0].sha256 == models[1].sha256:
        return found.result("nothing lost", words.nothing_lost(tuned, None, options.margin))
    more: dict[str, Any] = {"common_rows": methods.common_rows, "ignore": methods.ignore}
    candidates = Candidates(folders[0], folders[1], wanted, seed=options.seed, **more)
    kept = keep_of(keep, material.facts, seed=options.seed, most=options.keep_rows, batch_size=running.batch_size)
    found.keep = kept.words
    if keep is None:
        notes.append("nothing else that fine-tuning taught is measured; name it with --keep TASK or --keep FILE.jsonl")
    key = material.key(models, options, [c.name for c in wanted], more, kept.key)
    work = cache_folder() / "repairs" / key[:16]
    say(
        f"{len(wanted)} candidates, up to {len(material.facts):,} facts, at most about {options.minutes:g} min; to be "
        f"kept: {kept.words}"
    )
    with RunDirectory(work):
        places = [work / name / key[:16] for name in ("before", "after")]
        sides = load_sides(models, (base, tuned), places, material, options, running.device)
        if sides[0].chat:
            notes.append(CHAT_BASE)
        asking = Asking(sides, balanced(material.facts, options.seed), material.topics, options, work, say)
        contest = Contest(asking, candidates, kept, options, work, key)
        del sides
        return _Repair(contest, candidates, models, found, out, form, work).run(say)


class _Found:
    """What is filled in on the way to a result."""

    def __init__(self, base: str, tuned: str, facts: str, options: RepairOptions, notes: list[str]) -> None:
        self.names, self.facts, self.options, self.notes = (base, tuned), facts, options, notes
        self.keep = "nothing"

    def result(self, outcome: Any, sentence: str, **more: Any) -> RepairResult:
        empty: dict[str, Any] = dict.fromkeys(
            ("kept", "chosen", "gain", "kept_after", "task", "random", "beyond_random", "more_facts", "written",
             "values", "error_of_adapter")
        )  # fmt: skip
        counts = {"facts_choosing": 0, "facts_confirming": 0, "trials": (), "seconds": 0.0}
        return RepairResult(
            base=self.names[0],
            tuned=self.names[1],
            facts_source=self.facts,
            verdict=outcome,
            sentence=sentence,
            kept_task=self.keep,
            options=self.options.settings(),
            notes=tuple(self.notes),
            **{**empty, **counts, **more},
        )


class _Repair:
    """The steps of one repair."""

    def __init__(
        self,
        contest: Contest,
        candidates: Candidates,
        models: Sequence[BaseModel],
        found: _Found,
        out: Path | None,
        form: Form,
        work: Path,
    ) -> None:
        self.contest, self.candidates, self.models, self.found = contest, candidates, models, found
        self.out, self.form, self.work, self.options = out, form, work, found.options

    def run(self, say: Say) -> RepairResult:
        contest, options, tuned = self.contest, self.options, self.found.names[1]
        share = contest.know()
        known: dict[str, Any] = {
            "kept": points(share),
            "facts_choosing": len(contest.half("choosing")),
            "facts_confirming": len(contest.half("confirming")),
        }
        if verdict(share, options.margin / 100) == "kept":
            return self._result("nothing lost", words.nothing_lost(tuned, points(share), options.margin), known)
        if not contest.enough:
            return self._result("open", words.few_known(known["facts_choosing"], known["facts_confirming"]), known)
        last = contest.choose()
        if contest.untried:
            self.found.notes.append(f"the time was over before these were tried: {', '.join(contest.untried)}")
        if contest.answers_nothing:
            self.found.notes.append(
                f"the fine-tuned model is right on hardly any of {self.found.keep}: nothing is kept"
            )
        standings = [contest.stands(runner) for runner in last]
        name = pick(standings, options.keep_margin / 100)
        known["trials"] = tuple(_trial(self._candidate(runner.name), runner) for runner in contest.runners)
        if name is None:
            standing = [contest.stands(runner) for runner in contest.runners]
            sure = not contest.untried and hopeless(standing, options.margin / 100, self._keep_margin)
            best = max(
                (trial for trial in known["trials"] if not trial.control and trial.gain is not None),
                key=lambda trial: (trial.rounds, trial.gain.value),
                default=None,
            )
            tried = sum(not runner.control for runner in contest.runners)
            line = words.none_chosen(sure, tried, self.found.keep, options.keep_margin, best)
            return self._result("no help" if sure else "open", line, known)
        chosen = next(runner for runner in last if runner.name == name)
        random = next(r for r in last if r.name == best_control(standings, self._keep_margin))
        say(f"best in the choice: {name}; confirming on other facts, beside {random.name}")
        return self._confirm(chosen, random, known, say)

    @property
    def _keep_margin(self) -> float:
        return self.options.keep_margin / 100

    def _candidate(self, name: str) -> Candidate:
        return next(candidate for candidate in self.candidates.wanted if candidate.name == name)

    def _confirm(self, chosen: Runner, random: Runner, known: dict[str, Any], say: Say) -> RepairResult:
        contest, options = self.contest, self.options
        maker = self.candidates.maker(self._candidate(chosen.name))
        judged, adapter = chosen, None
        if self.form == "adapter":  # what is confirmed is what is written
            adapter = refactored(self.candidates, maker, self.work / "adapter")
            region = all_weights(self.candidates.base, adapter.folder)
            pair = pair_checkpoints(self.candidates.base, adapter.folder, region, None)
            judged = contest.stand_in(f"{chosen.name} as an adapter", pair)
        facts = contest.confirm([judged, random])
        if not facts:
            sentence = words.out_of_time(chosen.name, options.minutes)
            return self._result("open", sentence, {**known, "chosen": chosen.name})
        standing = contest.standing(judged, facts, "confirming")
        gain, task = standing.gain, standing.task
        beyond = contest.beyond(judged, random, facts)
        before, after = contest.kept(contest.tuned, facts), contest.kept(judged, facts)
        assert gain is not None, "the base knows these facts"
        assert before is not None
        assert after is not None
        outcome = confirmed(gain, task, margin=options.margin / 100, keep_margin=self._keep_margin)
        more = more_facts(gain, len(contest.asking.asked)) if outcome == "open" and gain.low <= 0 else None
        trial = next(trial for trial in known["trials"] if trial.name == chosen.name)
        sentence = words.outcome(
            outcome,
            trial,
            _told(gain),
            _told(before),
            _told(after),
            points(task),
            self.found.keep,
            options.margin,
            more,
        )
        if beyond is not None:
            self.found.notes.append(words.against_random(chosen.name, random.name, _told(beyond)))
        known |= {
            "chosen": chosen.name,
            "gain": points(gain),
            "kept_after": points(after),
            "task": points(task),
            "random": random.name,
            "beyond_random": points(beyond),
            "more_facts": more,
            "error_of_adapter": adapter.error if adapter is not None else None,
        }
        if adapter is not None:
            self.found.notes.append(
                f"as an adapter of the same rank: relative error {100 * adapter.error:.2f} % of the repaired change; "
                "what was confirmed is that adapter"
            )
        if outcome != "repaired":
            if self.out is not None:
                self.found.notes.append("nothing was written, as it is not sure to help")
            return self._result(outcome, sentence, known)
        if self.out is None:
            self.found.notes.append("nothing was written; give --out DIR for the repaired model")
            return self._result(outcome, sentence, known)
        contest.asking.limit.keep()
        contest.free()
        known |= self._write(maker, adapter, sentence, known, say)
        return self._result(outcome, sentence, known)

    def _write(self, maker: Any, adapter: Any, sentence: str, known: dict[str, Any], say: Say) -> dict[str, Any]:
        assert self.out is not None
        model = self.out.parent / "model" if self.form == "patch" else self.out
        manifest = restored_manifest(self.models[0], self.candidates.tuned, model)
        names = ("gain", "kept_after", "task", "random", "beyond_random")
        notes = {"repair": {"sentence": sentence, "kept": self.found.keep, **{name: known[name] for name in names}}}
        if self.form == "patch":
            values: int | None = write_candidate_patch(
                self.candidates, maker, self.out, manifest=manifest, notes=notes, say=say
            )
        elif self.form == "adapter":
            write_refactored(
                adapter,
                self.out,
                maker,
                like=self.candidates.tuned,
                manifest=manifest,
                notes=notes,
                finishing=card_writer(say),
            )
            values = None
        else:
            values = write_candidate(
                self.candidates, maker, self.out, manifest=manifest, notes=notes, finishing=card_writer(say)
            )
        return {"written": str(self.out), "values": values}

    def _result(self, outcome: str, sentence: str, known: dict[str, Any]) -> RepairResult:
        self.contest.asking.limit.keep()
        return self.found.result(outcome, sentence, seconds=round(self.contest.asking.seconds, 1), **known)


def _told(found: Kept) -> Estimate:
    estimate = points(found)
    assert estimate is not None
    return estimate


def _trial(candidate: Candidate, runner: Runner) -> Trial:
    standing = runner.standing
    return Trial(
        name=candidate.name,
        words=candidate.words,
        control=runner.control,
        gain=points(standing.gain) if standing else None,
        task=points(standing.task) if standing else None,
        rounds=runner.rounds,
    )


def _check_out(out: Path | None, form: Form, folders: Sequence[Path]) -> None:
    """Refuse a place or a form before the minutes that asking takes."""
    if form == "adapter":
        if not is_adapter(folders[1]):
            raise CheckpointError(f"{folders[1]} is no LoRA adapter; leave --adapter out and get a whole model")
        check_refactored(folders[0], folders[1])
    if out is None:
        return
    if form == "patch":
        refuse_patch_place(out)
    else:
        refuse_output(out, folders)
