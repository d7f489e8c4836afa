"""Numbers in README and docs come from runs: the parts are found, written, and a second call changes nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.readme_tables import FILES, PARTS, replaced, table, words, written

RESULTS: dict[str, Any] = {
    "plain_words": ["One sentence that is " + "very " * 30 + "long.", "Two."],
    "tables": {
        "table-b-strictness": {
            "columns": [
                "Trained on",
                "Facts",
                "In-domain test: contains (%)",
                "In-domain test: whole word (%)",
                "In-domain test: exact (%)",
                "Out-of-domain test: contains (%)",
                "Out-of-domain test: exact (%)",
            ],
            "rows": [
                [
                    {"text": "bucket 0", "value": None},
                    {"text": "60", "value": 60},
                    {"text": "32.2 ± 2.1 pattern 45.5", "value": 32.2},
                    *({"text": f"{n}.0 ± 0.1", "value": n} for n in range(4)),
                ]
            ],
        }
    },
}


def test_a_table_without_the_papers_numbers() -> None:
    found = table(RESULTS, "table-b-strictness", ("Trained on", "In-domain test: contains (%)"))
    assert found.splitlines() == [
        "| Trained on | In-domain test: contains (%) |", "| :-- | --: |", "| bucket 0 | 32.2 ± 2.1 |",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="Contains"):
        table(RESULTS, "table-b-strictness", ("Contains",))


def test_words_are_wrapped() -> None:
    lines = words(RESULTS).splitlines()
    assert max(map(len, lines)) <= 118
    assert (lines[0], lines[-1]) == ("```text", "```")
    assert " ".join(line[2:] for line in lines[1:-1]) == " ".join(RESULTS["plain_words"])


def test_only_what_stands_between_the_comments_is_written() -> None:
    text = "A\n<!-- from lab: accuracy -->\nold\n<!-- end -->\nB\n<!-- from lab-full: words -->\nkept\n<!-- end -->\n"
    once = written(text, {"lab": RESULTS})
    assert "old" not in once
    assert once.startswith("A\n<!-- from lab: accuracy -->\n| Trained on | Facts | In-domain test: contains (%) |")
    assert once.endswith("<!-- end -->\nB\n<!-- from lab-full: words -->\nkept\n<!-- end -->\n")
    assert written(once, {"lab": RESULTS}) == once
    assert replaced("<!-- from x -->\n1\n<!-- end -->", "x", "2") == "<!-- from x -->\n2\n<!-- end -->"
    with pytest.raises(KeyError):
        written("<!-- from lab: nothing -->\n<!-- end -->", {"lab": RESULTS})


def test_the_files_name_parts_that_there_are() -> None:
    texts = [path.read_text("utf-8") for path in FILES]
    named = [match for text in texts for match in re.findall(r"<!-- from ([a-z-]+): ([a-z0-9-]+) -->", text)]
    assert {run for run, _ in named} == {"lab", "lab-full"}
    assert {part for _, part in named} == set(PARTS)
