"""Numbers in README and docs come from runs: the parts are found, written, and a second call changes nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.readme_tables import COMMANDS, FILES, PARTS, figure_of, replaced, table, words, written

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


def test_words_are_a_list() -> None:
    lines = words(RESULTS).splitlines()
    assert max(map(len, lines)) <= 118
    assert " ".join(line.removeprefix("- ").strip() for line in lines) == " ".join(RESULTS["plain_words"])
    assert [line[0] for line in lines] == ["-", " ", "-"]
    assert words({"plain_words": ["b4_n240 < 3 | 5"]}) == r"- b4\_n240 \< 3 \| 5"


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
    named = [match for text in texts for match in re.findall(r"<!-- from ([a-z0-9.-]+): ([a-z0-9-]+) -->", text)]
    benchmarks = {
        "grading.json", "grading-real.json", "grading-bf16.json", "early.json", "early-real.json", "early-graded.json",
        "evaluation.json", "restoration.json",
        "deltas.json", "repairs.json",
    }  # fmt: skip
    assert {run for run, _ in named} == {"lab", "lab-full", "arena", "smollm2", "terminal", *benchmarks}
    assert {part for run, part in named if run == "terminal"} == set(COMMANDS)
    assert {part for _, part in named} == set(PARTS)


def test_where_a_run_was_made_and_how_long_it_took() -> None:
    def rows(**cells: object) -> dict[str, object]:
        return {"columns": ["", ""], "rows": [[{"text": k}, {"text": str(v), "value": v}] for k, v in cells.items()]}

    at = rows(**{"packages.torch": "2", "packages.transformers": "5", "packages.trl": "1", "device": "A card"})
    times = rows(**{"mastery": 3.4, "models": 1000.0, "evaluation": 2.0, "all stages": 1010.0})
    said = PARTS["setting"]({"tables": {"run-provenance": at, "run-times": times}})
    assert said.startswith("Made on: A card, torch 2, transformers 5, trl 1. Grading 3 s, training 1,000 s,")


def test_benchmarks_are_shown() -> None:
    side = {"seconds": 2.0, "cpu_seconds": 1.5, "peak_mb": 1_500.0}
    restored = {
        "region": 4e8, "dtype": "bfloat16", "levels": [1, 2], "processors": 2, "disk_gb_per_s": 1.25,
        "sides": {"ours_analysis": side, "b_analysis": {**side, "seconds": 5.0}},
    }  # fmt: skip
    shown = PARTS["sides"](restored).splitlines()
    assert shown[0].startswith(
        "400 M parameters in the region, bfloat16, 2 levels, 2 processors; the disk alone writes 1.2"
    )
    assert shown[-2:] == [
        "| ranking, sftknow | 2.0 | 1.0 | 1.5 | 1,500 |",
        "| ranking, one load, one `topk` (b) | 5.0 | 2.5 | 1.5 | 1,500 |",
    ]  # fmt: skip
    graded = {"model": "smollm2", "dtype": "float32", "threads": 2, "max_new_tokens": 32}
    graded["allowed"] = {"sides": {"generate, batch 8": {"samples_per_second": [300, 400], "ratio": 9.71}}}
    assert PARTS["sides"](graded).startswith("By smollm2, float32, 2 threads, at most 32 tokens.")
    assert PARTS["sides"](graded).splitlines()[-1] == "| end token allowed: generate, batch 8 | 350 | 9.7 | - | - |"
    early = {
        "model": "model", "source": "lab", "facts": 8, "samples": 10, "another_seed": {"agreement": 0.875},
        "early": {"0.95": {"agreement": 1.0, "samples_saved": 0.654}},
    }  # fmt: skip
    shown = PARTS["early"](early).splitlines()
    assert shown[0] == "8 facts (lab) by the lab's model, 10 samples a statement."
    assert shown[-2:] == ["| another seed, whole | 87.5% | - |", "| certainty 0.95 | 100.0% | 65% |"]
    real = {"model": "smollm2", "facts": 1600, "certainty": 0.95, "samples_saved": 0.403}
    assert PARTS["early"](real) == (
        "Of 1,600 facts graded by smollm2 at certainty 0.95, 40% of the samples were saved."
    )
    kept = {"pair": "lab", "weights_mb": 7.6, "zstd_alone_mb": 6.0, "delta_mb": 3.94, "times_smaller": 1.93}
    assert PARTS["sizes"]([kept]).splitlines()[-1] == "| lab | 7.6 | 6.0 | 3.9 | 1.9 |"
    seconds = {
        "levels": 8,
        "questions": 940,
        "one_process_seconds": 10.4,
        "lm_eval_seconds": 61.0,
        "times_faster": 5.87,
    }
    assert "10 s in one process (`sftknow evaluate`), 61 s by as many" in PARTS["times"](seconds)


def test_the_picture_is_a_figure_of_the_report() -> None:
    results = {"figures": {"figure-2": {"alt": {"figure-2-accuracy-test": "Accuracy: 48.9."}}}}
    assert figure_of(results) == "figure-2-accuracy-test"
    assert PARTS["picture"](results) == "![Accuracy: 48.9.](docs/pictures/lab-full.svg)"


def test_the_answer_stands_before_what_was_chosen() -> None:
    cells = [
        [{"text": text, "value": None} for text in row] for row in (("test", "exact match"), ("test", "whole word"))
    ]
    chosen = {"columns": ["Split", "Measure"], "rows": cells}
    shown = PARTS["chosen"]({"answer": "It harms.", "tables": {"table-h-chosen": chosen}})
    assert shown.splitlines() == ["It harms.", "", "| Split | Measure |", "| :-- | :-- |", "| test | exact match |"]
