"""The whole loop with public names alone: grade, fine-tune, score, compare, restore, plan the publication.

`tests/test_public_names.py` runs it on the lab's model and has mypy check it.
"""

from __future__ import annotations

from pathlib import Path

import sftknow


def loop(base: Path, facts: str, out: Path) -> dict[str, float]:
    """Do it all below ``out``; return the accuracy of every level on the test split."""
    topics, synonyms = sftknow.load_topics(), sftknow.Synonyms.load()
    read = sftknow.load_facts(facts, topics=topics, synonyms=synonyms, limit=36)
    ref = sftknow.ModelRef(path=str(base))
    model, tokenizer = sftknow.load_model(ref), sftknow.load_tokenizer(ref)

    graded = sftknow.grade_facts(
        [(fact, sftknow.statements_for(topics[fact.topic], fact.subject)) for fact in read.facts],
        sftknow.TransformersSampler(model, tokenizer, rule=sftknow.MatchRule()),
        sftknow.SamplingPolicy(samples=2, max_new_tokens=4),
        out / "grading",
    )
    sftknow.write_mastery_data(out / "graded", graded, {"graded_by": base.name, "policy": {"samples": 2}})
    data = sftknow.MasteryData(out / "graded")

    training = [row for bucket in range(5) for row in data.bucket("train", bucket)]
    drawn, chosen = sftknow.draw(training, bucket=None, size=8, seed=0)
    recipe = sftknow.SFTRecipe(learning_rate=1e-3, save_dtype="float32")
    named = {"path": str(data.folder), "fingerprint": data.fingerprint}
    manifest = {"mastery_dataset": named, "draw": {"seed": drawn.seed}}
    tuned = out / "tuned"
    sftknow.fine_tune(ref, chosen, tuned, recipe=recipe, seed=0, manifest=manifest)
    changed = sftknow.load_model(sftknow.ModelRef(path=str(tuned)))

    statements = {name: topic.templates for name, topic in topics.items()}
    asked = [row for bucket in range(5) for row in data.bucket("test", bucket)]
    selection = sftknow.select_prompts(
        asked, statements, buckets=[bucket for bucket in range(5) if data.count("test", bucket)]
    )
    view = sftknow.measure_base(model, tokenizer, selection, window=4)
    divergence = sftknow.measure_divergence(view, changed, tokenizer, bootstrap=100)
    print(f"{len(divergence.examples)} facts compared by their first token")

    analysis = sftknow.analyse(base, tuned, ["5%", "20%"])
    sftknow.write_plan(out / "plan.json", analysis.plan)
    plan: sftknow.RestorePlan = sftknow.read_plan(out / "plan.json")
    outputs = {level: out / "restored" / level.replace("%", "pct") for level in ("5%", "20%")}
    sftknow.restore_levels(base, tuned, plan, outputs, manifests=dict.fromkeys(outputs, manifest))

    harness = sftknow.Harness(data.folder, splits=("test",))
    levels = sftknow.ModelLevels(changed, base, tuned, plan)
    accuracy = {}
    for level in outputs:
        levels.to(level)
        accuracy[level] = harness.score(changed, tokenizer, name=level).value("cbqa_mastery_test").value
    return accuracy
