"""What a run says, as numbers: the part of ``results.json`` that the words are made from.

Accuracies and differences are shares between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import Any

import numpy as np

from sftknow.artifacts.choice import BESIDE
from sftknow.artifacts.levels import level_share
from sftknow.records import BUCKETS, to_json
from sftknow.report.aggregate import broken_form, chosen_gains, compare, estimate, measured, ranked
from sftknow.report.changes import shown_change
from sftknow.report.claims import correlation
from sftknow.report.contents import BASE, Model, Report
from sftknow.report.controls import controlled, ranking_gains
from sftknow.report.divergence import beside_words, bucket_of, reading
from sftknow.report.knowledge import format_part
from sftknow.report.layout import finite
from sftknow.report.mastery import exposure_bins
from sftknow.report.words import LEAST_DRAWS, Difference, together
from sftknow.stats import spearman


def findings(report: Report) -> dict[str, Any]:
    """The numbers behind the words; a part that the run cannot give is absent. Accuracies are shares (0 to 1)."""
    parts = {name: find(report) for name, find in PARTS.items()}
    return {name: part for name, part in parts.items() if part}


def _exposure(report: Report) -> dict[str, Any]:
    if report.exposed is None:
        return {}
    bins = exposure_bins(report.exposed)
    related = spearman(report.exposed.exposures, report.exposed.rate)
    return {
        "facts": int(report.exposed.rate.size),
        "least": {"seen": bins[0].title, "mean_rate": bins[0].mean},
        "most": {"seen": bins[-1].title, "mean_rate": bins[-1].mean},
        "rank_correlation": related.rho if related else None,
    }


def _base(report: Report) -> dict[str, Any]:
    if BASE not in report.models:
        return {}
    found = {s: estimate([report.models[BASE]], s) for s in ("test", "testood")}
    return {
        split: {"value": e.value, "stderr": finite(e.error), "beside": _beside([report.models[BASE]], split)}
        for split, e in found.items()
        if e
    }


def _beside(models: Sequence[Model], split: str) -> dict[str, float]:
    """What stands beside containment, as far as it was measured."""
    found = measured(models, split)
    return found.beside if found else {}


def _best_training(report: Report) -> dict[str, Any]:
    found = ranked(report, report.trainings, "test")
    if not found:
        return {}
    best, value = found[0]
    models = best.models
    part: dict[str, Any] = {
        "name": best.name,
        "title": best.phrase,
        "seeds": len(models),
        "trainings": len(found),
        "test": value,
        "beside": _beside(models, "test"),
        "broken": list(broken_form(report, models, "test")),
    }
    ahead = [(t, v) for t, v in found if v > value and t is not best]
    if ahead:
        ran_on, more = max(ahead, key=lambda pair: pair[1])
        part["breaks_form"] = {"title": ran_on.phrase, "test": more, "beside": _beside(ran_on.models, "test")}
    outside = estimate(models, "testood")
    if outside:
        part["testood"] = outside.value
    if BASE in report.models:
        for split in ("test", "testood"):
            gain = compare(models, [report.models[BASE]], split)
            if gain:
                part[f"{split}_over_base"] = gain.among(len(found)).part()
    # The best and the weakest were picked by looking: they stand for every pair of trainings.
    looks = comb(len(found), 2)
    rivals = []
    for group, rival in found[1:]:
        lead = compare(models, group.models, "test")
        if lead and not (lead := lead.among(looks)).sure:
            rivals.append({"name": group.name, "title": group.phrase, "test": rival, **lead.part()})
    part["not_told_apart"] = rivals
    worst, low = min(found, key=lambda pair: pair[1])
    if worst is not best:
        behind = compare(models, worst.models, "test")
        part["worst"] = {"name": worst.name, "title": worst.phrase, "test": low}
        if behind:
            part["worst"]["behind"] = behind.among(looks).part()
    return part


def _more_data(report: Report) -> list[dict[str, Any]]:
    """For each source: its largest size against its smallest."""
    parts, effects = [], []
    found = report.trainings
    for source in dict.fromkeys(g.source for g in found):
        own = [g for g in found if g.source == source]
        effect = compare(own[-1].models, own[0].models, "test") if len(own) > 1 else None
        if effect:
            parts.append({"trained_on": own[0].trained_on, "from": own[0].size, "to": own[-1].size})
            effects.append(effect)
    return [{**part, **effect.part()} for part, effect in zip(parts, together(effects), strict=True)]


def _source_effect(report: Report) -> dict[str, Any]:
    """Bucket 0 (unknown facts) against the best-placed bucket at the largest size that the buckets share."""
    found = [g for g in report.trainings if g.bucket is not None and not g.all]
    sizes = [{g.size for g in found if g.bucket == b} for b in {g.bucket for g in found}]
    shared = set.intersection(*sizes) if sizes else set()
    if not shared:
        return {}
    here = [g for g in found if g.size == max(shared)]
    values = [(g, e.value) for g in here if (e := estimate(g.models, "test"))]
    if len(values) < 2 or values[0][0].bucket != 0:
        return {}
    unknown = values[0][0]
    best = max(values, key=lambda pair: pair[1])[0]
    if best is unknown:
        second = max(values[1:], key=lambda pair: pair[1])[0]
        lead = compare(unknown.models, second.models, "test")
        if lead is None:
            return {}
        lead = lead.among(comb(len(values), 2))
        return {"size": unknown.size, "best": best.trained_on, "bucket_0_is_best": True, "lead": lead.part()}
    part: dict[str, Any] = {"size": unknown.size, "best": best.trained_on, "bucket_0_is_best": False}
    for name, bucket in (("mean", None), ("bucket_4", BUCKETS[-1])):
        lag = compare(unknown.models, best.models, "test", bucket)
        if lag:  # the best of the others was picked by looking, and two places are looked at
            part[name] = lag.among(2 * (len(values) - 1)).part()
    return part


def _divergence(report: Report) -> dict[str, Any]:
    if not report.divergences:
        return {}
    ranked = sorted(report.divergences.items(), key=lambda pair: pair[1].mean)
    (least, low), (most, high) = ranked[0], ranked[-1]
    part: dict[str, Any] = {
        "least": {"title": report.phrase(least), "nats": low.mean},
        "most": {"title": report.phrase(most), "nats": high.mean},
        "bucket": bucket_of(report),
        "reading": reading(report),
    }
    related, draws = correlation(report)
    if related:
        part["rank_correlation"] = {**to_json(related), "few_seeds": draws < LEAST_DRAWS}
        part["beside"] = beside_words(report)
    return part


def _concentration(report: Report) -> dict[str, Any]:
    name = shown_change(report)
    if name is None or not report.changes[name].levels:
        return {}
    change = report.changes[name]
    levels = sorted(change.levels, key=lambda s: level_share(s.level))
    first, last = next((s for s in levels if level_share(s.level) >= level_share("5%")), levels[-1]), levels[-1]
    return {
        "title": report.phrase(name),
        "changed_share": change.changed / change.elements if change.elements else None,
        "level": first.level,
        "concentration": finite(first.concentration),
        "concentration_nonzero_base": finite(first.concentration_nonzero_base),
        "highest_level": last.level,
        "highest_level_unchanged": last.selected_unchanged / last.selected if last.selected else None,
    }


def _restoration(report: Report) -> dict[str, Any]:
    part: dict[str, Any] = {}
    choice = report.choice
    if choice and choice.cell in report.models:
        levels = report.restored(choice.cell)
        plain, model = report.models[choice.cell], levels.get(choice.level)
        part |= {"title": report.phrase(choice.cell), "level": choice.level, "chosen_on": choice.chosen_on}
        part["chosen_by"] = report.choosing_by
        scores = measured([model], "test") if model else None, measured([plain], "test")
        part["broken"] = list(scores[0].broken(scores[1])) if scores[0] and scores[1] else []
        moves: dict[str, Difference] = {}
        for split in ("dev", "test", "testood"):
            before, after = estimate([plain], split), estimate([model] if model else [], split)
            moved = compare([model], [plain], split, same_runs=True) if model else None
            if before and after and moved:
                part[split] = {"before": before.value, "after": after.value, "beside": _moved(plain, model, split)}
                # Where the level was picked by the split itself, every level was a look.
                moves[split] = moved.among(len(levels)) if split == choice.chosen_on else moved
        fair = [split for split in moves if split != choice.chosen_on]
        moves |= zip(fair, together([moves[split] for split in fair]), strict=True)
        for split, moved in moves.items():
            part[split] |= moved.part()
        scored = {level: e.value for level, m in levels.items() if (e := estimate([m], "test"))}
        if scored:
            top = max(scored, key=lambda level: scored[level])
            part["best_on_test"] = {"level": top, "value": scored[top]}
    chosen = chosen_gains(report)
    if chosen:
        part["chosen_levels"] = [
            {
                "title": g.training.phrase,
                "level": g.level,
                "chosen_on": report.choosing_split,
                "seeds": len(g.training.runs),
                **found.part(),
            }
            for g, found in zip(chosen, together([g.found for g in chosen]), strict=True)
        ]
    return part


def _moved(plain: Model, restored: Model | None, split: str) -> dict[str, dict[str, Any]]:
    """What restoring does to the measures beside containment."""
    moves: dict[str, dict[str, Any]] = {}
    for name in BESIDE:
        sides = [estimate([model], split, metric=name) for model in (plain, restored) if model]
        moved = compare([restored], [plain], split, same_runs=True, metric=name) if restored else None
        if moved and len(sides) == 2 and sides[0] and sides[1]:
            moves[name] = {"before": sides[0].value, "after": sides[1].value, **moved.part()}
    return moves


def _controls(report: Report) -> dict[str, Any]:
    found = controlled(report)
    gains = ranking_gains(found)
    if not gains:
        return {}
    judged = zip(gains, together(list(gains.values())), strict=True)
    return {
        "trainings": len(found),
        "ranking": float(np.mean([one.gain() for one in found])),
        "beyond": {
            kind: {"gain": float(np.mean([one.gain(kind) for one in found])), **beyond.part()}
            for kind, beyond in judged
        },
    }


PARTS: dict[str, Callable[[Report], Any]] = {
    "exposure": _exposure,
    "base": _base,
    "best_training": _best_training,
    "format": format_part,
    "more_data": _more_data,
    "source_effect": _source_effect,
    "divergence": _divergence,
    "concentration": _concentration,
    "restoration": _restoration,
    "controls": _controls,
}
"""The parts by name, in the order in which they are told."""
