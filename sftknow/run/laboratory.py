"""Build a lab: text about facts, each seen to a known degree, and a small model pretrained on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.answers import Synonyms
from sftknow.artifacts.files import atomic_file
from sftknow.artifacts.manifests import read_manifest
from sftknow.artifacts.mastery_data import fact_row
from sftknow.checkpoints.side_files import refuse_foreign
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.lab.exposure import ExposureLaw, FactExposure, documents, expose
from sftknow.lab.pretrain import PretrainConfig, pretrain
from sftknow.lab.world import WorldSize, build_world
from sftknow.records import Fact


@dataclass(frozen=True, kw_only=True)
class BuiltLab:
    """What `build_lab` left on disk."""

    model: Path
    facts_file: Path
    facts: int
    documents: int
    steps: int


def build_lab(source: str, out: Path, *, limit: int | None = None, seed: int = 0) -> BuiltLab:
    """Make facts (or read them), draw their exposure, write the text, pretrain on it.

    Args:
        source: ``world`` for the lab's own synthetic world, or any source of `load_facts`.
        out: gets ``model/`` and ``facts.parquet`` (the facts with their exposure; itself a facts source).
        limit: see `load_facts`; not for the world.
        seed: of world, exposure, text and training.

    Raises:
        FactsError: the source cannot be used.
        CheckpointError: ``out/model`` holds something else than such a model.
    """
    refuse_foreign(out / "model")
    topics = load_topics()
    if source == "world":
        facts = build_world(topics, size=WorldSize(), seed=seed)
    else:
        facts = list(load_facts(source, topics=topics, synonyms=Synonyms.load(), limit=limit, seed=seed).facts)
    law = ExposureLaw()
    exposures = expose(facts, topics, law=law, seed=seed)
    texts = documents(facts, exposures, topics, seed=seed)
    facts_file = out / "facts.parquet"
    write_lab_facts(facts_file, facts, exposures)
    model = pretrain(
        texts,
        out / "model",
        config=PretrainConfig(seed=seed),
        manifest={"lab": {"facts": source, "limit": limit, "seed": seed, "law": asdict(law), "documents": len(texts)}},
    )
    manifest = read_manifest(model, "model") or {}
    return BuiltLab(
        model=model,
        facts_file=facts_file,
        facts=len(facts),
        documents=len(texts),
        steps=int(manifest["pretraining"]["steps"]),
    )


def write_lab_facts(path: Path, facts: list[Fact], exposures: list[FactExposure]) -> None:
    """Write the facts with their exposure as Parquet, one row a fact."""
    rows = [
        {
            **fact_row(fact),
            "exposures": exposure.statements,
            "templates_seen": list(exposure.templates),
            "wrong_share": exposure.wrong / exposure.statements if exposure.statements else 0.0,
            "question_exposures": exposure.questions,
        }
        for fact, exposure in zip(facts, exposures, strict=True)
    ]
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("fact_id", "topic", "subject", "object")),
            ("aliases", pa.list_(pa.string())),
            ("question", pa.string()),
            ("split", pa.string()),
            ("exposures", pa.int32()),
            ("templates_seen", pa.list_(pa.int8())),
            ("wrong_share", pa.float64()),
            ("question_exposures", pa.int32()),
        ]
    )
    with atomic_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial, compression="zstd")
