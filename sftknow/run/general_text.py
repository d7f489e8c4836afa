"""The paper's Table 5 as text for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sftknow.artifacts.files import read_json
from sftknow.report.terminal import text_table

_NAMES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "acc": "ACC",
    "acc_flexible": "ACC, last number",
}
_ROWS = {"base": "base model", "0%": "fine-tuned"}


def general_text(path: Path) -> str:
    """Percentages: a row for the base, the fine-tuned model and each restored share, a column for each metric."""
    tasks: dict[str, Any] = read_json(path)["tasks"]
    header = [
        "restored",
        *(f"{task} {_NAMES[m['name']]}" for task, t in tasks.items() for m in t["rows"][0]["metrics"]),
    ]
    first = next(iter(tasks.values()))
    rows = []
    for place, row in enumerate(first["rows"]):
        cells = []
        for table in tasks.values():
            for metric in table["rows"][place]["metrics"]:
                spread = "" if metric["stderr"] is None else f" ± {100 * metric['stderr']:.2f}"
                cells.append(f"{100 * metric['value']:.2f}{spread}")
        rows.append([_ROWS.get(row["level"], row["level"]), *cells])
    return text_table(header, rows)
