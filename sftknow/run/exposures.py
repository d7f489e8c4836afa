"""The lab's known exposure, written into a run for the report's figure of R against exposure."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.files import atomic_file
from sftknow.facts.sources import FactSet


def write_exposures(path: Path, facts: FactSet) -> None:
    """Write one row a fact where the source knows the exposure; nothing where it does not."""
    if facts.exposures is None:
        return
    rows = [{"fact_id": fact_id, **vars(exposure)} for fact_id, exposure in facts.exposures.items()]
    with atomic_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)
