"""The numbers of README and docs, written from runs and benchmarks: no measured number there is typed by hand.

    sftknow run lab --out runs/lab && sftknow run lab-full --out runs/lab-full
    python -m tests.readme_tables runs/lab --full runs/lab-full
    python -m tests.readme_tables --real runs/smollm2-135m         # docs/real-models.md
    python -m tests.readme_tables runs/lab --terminal              # what commands print, shown as they print it
    python -m tests.readme_tables --arena runs/arena               # the arena, whole or partial
    python -m tests.readme_tables --bench grading.json …           # what benchmarks wrote with --json
    python -m tests.benchmarks.machines runs/lab --docs            # how much they move from machine to machine

Each part stands between two comments, ``<!-- from SOURCE: PART -->`` and ``<!-- end -->``, where a source is a run
(lab, lab-full, arena), the terminal, or a benchmark's file (grading.json); the rest of a page is left as it is, and so
are the parts of what is not given. A second call changes nothing. The picture of the README is a figure of the report.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sftknow.report.arena.page import compose

ROOT = Path(__file__).resolve().parents[1]
FILES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PICTURE = ROOT / "docs" / "pictures" / "lab-full.svg"
ARENA_PICTURE = ROOT / "docs" / "pictures" / "arena.svg"
FIGURES = ("figure-2-accuracy-test",)
"""Figures of a report for the README; the first that a run has."""
_PART = re.compile(r"(<!-- from (?P<run>[a-z0-9.-]+): (?P<part>[a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PAPER = re.compile(r" (?:paper|pattern) [\d,.]+.*$")
_WIDTH = 118


def words(results: Mapping[str, Any]) -> str:
    """What the terminal says at the end of the run, as a list."""
    plain = (re.sub(r"([*_<|])", r"\\\1", sentence) for sentence in results["plain_words"])
    return "\n".join(textwrap.fill(s, _WIDTH, initial_indent="- ", subsequent_indent="  ") for s in plain)


def table(results: Mapping[str, Any], id: str, columns: Sequence[str] | None = None) -> str:
    """A table of the report without the paper's numbers, as Markdown.

    Args:
        results: the content of results.json.
        id: the table's.
        columns: some of its columns by their titles; None for all.

    Raises:
        KeyError, ValueError: there is no such table or column.
    """
    found = results["tables"][id]
    places = [found["columns"].index(title) for title in columns or found["columns"]]
    rows = [[_PAPER.sub("", row[i]["text"]).replace("|", "\\|") for i in places] for row in found["rows"]]
    head = [found["columns"][i] for i in places]
    numbers = [any(row[i]["value"] is not None for row in found["rows"]) and i > 0 for i in places]
    lines = [head, ["--:" if number else ":--" for number in numbers], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _accuracy(results: Mapping[str, Any]) -> str:
    readings = [f"{split} test: {way} (%)" for split in ("In-domain", "Out-of-domain") for way in ("contains", "exact")]
    return table(results, "table-b-strictness", ("Trained on", "Facts", *readings))


def _verdicts(results: Mapping[str, Any]) -> str:
    return table(results, "table-m-verdicts", ("Claim", "Here", "Why"))


def _setting(results: Mapping[str, Any]) -> str:
    """On what a run was made, and how long its parts took."""
    told = {
        name: {row[0]["text"]: row[1] for row in results["tables"][name]["rows"]}
        for name in ("run-provenance", "run-times")
    }
    at, times = told["run-provenance"], told["run-times"]
    packages = ", ".join(f"{name} {at[f'packages.{name}']['text']}" for name in ("torch", "transformers", "trl"))
    parts = {"grading": "mastery", "training": "models", "scoring": "evaluation", "all that was timed": "all stages"}
    seconds = ", ".join(f"{name} {times[stage]['value']:,.0f} s" for name, stage in parts.items())
    devices = [cell["text"] for name, cell in at.items() if re.fullmatch(r"(earlier\[\d+\]\.)?device", name)]
    # A run that went on elsewhere names where it was last before where it had been.
    where = " and ".join(dict.fromkeys(devices))
    return textwrap.fill(f"Made on: {where}, {packages}. {seconds[0].upper()}{seconds[1:]}.", _WIDTH)


def _chosen(results: Mapping[str, Any]) -> str:
    """The sentence that answers, and the restoration that was chosen: containment, exact match, and what else moved."""
    lines = table(results, "table-h-chosen").splitlines()
    rows = [line for line in lines if "| whole word |" not in line and "| ±0.0 ± 0.0 |" not in line]
    return "\n".join([*textwrap.wrap(results["answer"], _WIDTH), "", *rows])


def figure_of(results: Mapping[str, Any]) -> str:
    """The name of the file that is the README's picture. Raises StopIteration where the report has none of FIGURES."""
    drawn = {name for figure in results["figures"].values() for name in figure["alt"]}
    return next(name for name in FIGURES if name in drawn)


def _picture(results: Mapping[str, Any]) -> str:
    name = figure_of(results)
    alt = next(figure["alt"][name] for figure in results["figures"].values() if name in figure["alt"])
    return f"![{alt}]({PICTURE.relative_to(ROOT).as_posix()})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _restoration(result: Mapping[str, Any]) -> str:
    """The sides of `tests.benchmarks.restoration`."""
    sides = {"ours": "sftknow", "b": "one load, one `topk` (b)", "a": "anew for every level (a)"}
    works = {"analysis": "ranking", "sweep": "ranking and writing"}
    rows = []
    for name, row in result["sides"].items():
        side, _, work = name.rpartition("_")
        times = row["seconds"] / result["sides"][f"ours_{work}"]["seconds"]
        figures = (f"{row['seconds']:.1f}", f"{times:.1f}", f"{row['cpu_seconds']:.1f}", f"{row['peak_mb']:,.0f}")
        rows.append((f"{works[work]}, {sides[side]}", *figures))
    said = (
        f"{result['region'] / 1e6:,.0f} M parameters in the region, {result['dtype']}, {len(result['levels'])} levels, "
        f"{result['processors']} processors; the disk alone writes {result['disk_gb_per_s']:.1f} GB/s."
    )
    ran = {row["levels_run"] for row in result["sides"].values() if "levels_run" in row}
    if ran and min(ran) < len(result["levels"]):
        said += f" Of (a) {min(ran)} levels were run; the figures are those times the number of levels."
    head = ("", "Seconds", "Times sftknow", "CPU seconds", "Peak memory (MB)")
    return f"{said}\n\n{_markdown(head, rows)}"


def _grading(result: Mapping[str, Any]) -> str:
    """The sides of `tests.benchmarks.grading`."""
    rows = []
    for end in ("allowed", "suppressed"):
        for name, side in result.get(end, {}).get("sides", {}).items():
            per_second = sum(side["samples_per_second"]) / len(side["samples_per_second"])
            tokens = f"{side['tokens_per_sample']:.1f}" if "tokens_per_sample" in side else "-"
            rate = f"{per_second:,.{0 if per_second > 100 else 1}f}"
            by_cpu = f"{statistics.median(side['cpu_ratios']):.1f}" if side.get("cpu_ratios") else "-"
            rows.append((f"end token {end}: {name}", rate, f"{side['ratio']:.1f}", by_cpu, tokens))
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    said = f"By {_model(result)}, {result['dtype']}, {threads}, at most {result['max_new_tokens']} tokens."
    head = ("", "Samples a second", "sftknow is faster by", "by processor time", "Tokens a sample")
    return f"{said}\n\n{_markdown(head, rows)}"


def _early(result: Mapping[str, Any]) -> str:
    """`tests.benchmarks.early`: agreement with the whole grading, and what it saves."""
    if "another_seed" not in result:
        return (
            f"Of {result['facts']:,} facts graded by {_model(result)} at certainty {result['certainty']}, "
            f"{result['samples_saved']:.0%} of the samples were saved."
        )
    said = f"{result['facts']} facts ({result['source']}) by {_model(result)}, {result['samples']} samples a statement."
    sides = {"another seed, whole": result["another_seed"]} | {f"certainty {c}": r for c, r in result["early"].items()}
    rows = [
        (name, f"{side['agreement']:.1%}", f"{side['samples_saved']:.0%}" if "samples_saved" in side else "-")
        for name, side in sides.items()
    ]
    return f"{said}\n\n{_markdown(('', 'Same bucket as the whole grading', 'Samples saved'), rows)}"


def _model(result: Mapping[str, Any]) -> str:
    name = Path(result["model"]).name
    return "the lab's model" if name == "model" else name


def _evaluation(result: Mapping[str, Any]) -> str:
    return (
        f"{result['levels']} restoration levels of the lab, {result['questions']} questions each: "
        f"{result['one_process_seconds']:.0f} s in one process (`sftknow evaluate`), {result['lm_eval_seconds']:.0f} s "
        f"by as many `lm_eval` commands, which is {result['times_faster']:.1f} times as long; the scores are equal "
        "to the last digit."
    )


def _deltas(result: Sequence[Mapping[str, Any]]) -> str:
    keys = {"weights_mb": "Whole (MB)", "zstd_alone_mb": "Zstandard alone (MB)", "delta_mb": "As kept (MB)"}
    rows = [(row["pair"], *(f"{row[k]:.1f}" for k in (*keys, "times_smaller"))) for row in result]
    return _markdown(("", *keys.values(), "Times smaller"), rows)


def _repairs(result: Mapping[str, Any]) -> str:
    """What `repair` chose and every method beside it, of `tests.benchmarks.repairs`."""
    rows, compared, better = [], 0, []
    for row in (row for name, row in result.items() if name != "simulated"):
        others = {name: one for name, one in row["methods"].items() if one["candidate"] != row["chosen"]}
        compared += len(others)
        better += [f"{name} ({row['words']}, seed {row['seed']})" for name, one in others.items() if one["better"]]
        best = max(
            (one for one in others.values() if one["keeps"]), key=lambda one: one["beyond"]["value"], default=None
        )
        said = f"{row['verdict']}: {row['chosen']}" if row["chosen"] else str(row["verdict"])
        beside = "none keeps the answers" if best is None else f"{best['candidate']}: {_points(best['beyond'])}"
        rows.append(
            (row["words"], str(row["seed"]), f"{row['kept']['value']:.0f} %", said, _points(row["gain"]), beside)
        )
    head = ("Damage", "Seed", "Kept before", "Said", "Brought back (points)", "Best other method, against that")
    sure = "none is surely better" if not better else f"surely better: {', '.join(better)}"
    return f"{_markdown(head, rows)}\n\nOf {compared} methods beside what was chosen {sure}."


def _points(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    within = "" if found["low"] is None else f" ({found['low']:+.1f} to {found['high']:+.1f})"
    return f"{found['value']:+.1f}{within}".replace("-", "−")


def _simulated(result: Mapping[str, Any]) -> str:
    """How often what is said, of `tests.benchmarks.repairs --contests`."""
    rows = [
        (kind, f"{said['contests']:,}", *(f"{said.get(word, 0):,}" for word in ("repaired", "open", "no help")))
        for kind, said in result["simulated"].items()
    ]
    return _markdown(("In truth", "Contests", "Repaired", "Cannot be told", "Nothing helps"), rows)


def _arena_says(results: Mapping[str, Any]) -> str:
    """What an arena finds, and what it lacks."""
    gaps = [f"Missing: {gap['what']} ({gap['where']})." for gap in results["missing"]]
    return words({"plain_words": [results["answer"], *results["words"], *gaps]})


def _arena_table(results: Mapping[str, Any], id: str, columns: Sequence[str] | None = None) -> str:
    """A table of an arena; a partial one may lack it."""
    return table(results, id, columns) if id in results["tables"] else "not measured"


def _arena_picture(results: Mapping[str, Any]) -> str:
    return f"![{results['alt']}](pictures/{ARENA_PICTURE.name})" if results["alt"] else "not measured"


_RANKED = ("Method", "Kept at equal learning (points)", "Said", "Learned (points)", "Kept (%)", "Time (× plain)")

PARTS: dict[str, Callable[[Any], str]] = {
    "front": lambda results: results["front_page"],
    "says": _arena_says,
    "front-picture": _arena_picture,
    "ranked-methods": lambda results: _arena_table(results, "arena-statements", _RANKED),
    "questions": lambda results: _arena_table(results, "arena-questions", _RANKED[:5]),
    "is-it-the-ranking": lambda results: _arena_table(results, "arena-ranking-statements"),
    "by-the-papers-measure": lambda results: _arena_table(results, "arena-ranking-answers"),
    "afterwards": lambda results: _arena_table(results, "arena-added"),
    "words": words,
    "accuracy": _accuracy,
    "restoration": lambda results: table(results, "table-4a-restoration-test"),
    "controls": lambda results: table(results, "table-q-controls"),
    "verdicts": _verdicts,
    "buckets": lambda results: table(results, "table-1-distribution"),
    "setting": _setting,
    "chosen": _chosen,
    "picture": _picture,
    "sides": lambda result: _restoration(result) if "region" in result else _grading(result),
    "times": _evaluation,
    "early": _early,
    "sizes": _deltas,
    "methods": _repairs,
    "simulated": _simulated,
    **{name: lambda shown, name=name: shown[name] for name in ("check", "repair", "plan", "lm-eval")},
}
"""What stands between the comments, by name."""

_MODELS = "runs/lab/models"
COMMANDS = {
    "check": (f"sftknow check {_MODELS}/base {_MODELS}/b0-n240-s0 --facts lab", r"\A.*\n"),
    "repair": (f"sftknow repair {_MODELS}/base {_MODELS}/b0-n240-s0 --facts lab --minutes 12", r"\A.*\n"),
    "plan": ("sftknow run lab-full --dry-run", r"(?s)\A.*"),
    "lm-eval": (
        f"lm_eval --model hf --model_args pretrained={_MODELS}/b3-n60-s0 --tasks cbqa_mastery --batch_size 128",
        r"(?s)\|        Groups .*",
    ),
}
"""What is shown of a terminal: the command, and which part of what it prints."""


def terminal(run: Path) -> dict[str, str]:
    """What the commands print, in a folder where ``runs/lab`` is the given run.

    One that fails ends the program with what it said; 1 and 3 are answers of ``check`` and ``repair``.
    """
    shown = {}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "runs").mkdir()
        (Path(scratch) / "runs" / "lab").symlink_to(run.resolve())
        for name, (command, part) in COMMANDS.items():
            done = subprocess.run(
                [sys.executable, "-m", *_as_module(command)],
                cwd=scratch,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": str(_WIDTH), "HOME": scratch},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode not in ((0, 1, 3) if name in ("check", "repair") else (0,)):
                sys.exit(f"{command} gave {done.returncode}:\n{done.stdout}{done.stderr}")
            found = re.search(part, done.stdout)
            assert found, f"{command} printed:\n{done.stdout}"
            said = found[0].rstrip() if name == "plan" else _wrapped(found[0])
            shown[name] = f"```text\n{said}\n```"
    return shown


def _as_module(command: str) -> list[str]:
    """The command as arguments of ``python -m``; lm_eval finds the tasks of a checkout, too."""
    words = command.split()
    from sftknow.resources import task_folder

    return [*words, "--include_path", str(task_folder())] if words[0] == "lm_eval" else words


def _wrapped(text: str) -> str:
    return "\n".join(part for line in text.rstrip().splitlines() for part in textwrap.wrap(line, _WIDTH) or [""])


def written(text: str, runs: Mapping[str, Mapping[str, Any]]) -> str:
    """A file's text with the parts of the given runs.

    Args:
        text: of the file.
        runs: the content of a run's results.json or of a benchmark's JSON, by the name that the comments give it.

    Raises:
        KeyError: a comment names a part that there is not, or a table that the run lacks.
    """

    def part(match: re.Match[str]) -> str:
        results = runs.get(match["run"])
        return match[0] if results is None else f"{match[1]}{PARTS[match['part']](results)}\n{match[4]}"

    return _PART.sub(part, text)


def replaced(text: str, name: str, block: str) -> str:
    """A file's text with one part, ``<!-- from NAME -->``, given."""
    whole = re.compile(rf"(<!-- from {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    return whole.sub(lambda match: f"{match[1]}{block}\n{match[2]}", text)


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, nargs="?", help="a finished run of the recipe lab")
    parser.add_argument("--full", type=Path, help="a finished run of lab-full")
    parser.add_argument("--real", type=Path, metavar="RUN", help="a finished run of smollm2-135m")
    parser.add_argument("--terminal", action="store_true", help="start the commands of COMMANDS in RUN's place")
    parser.add_argument("--arena", type=Path, help="a run of the recipe arena, finished or not")
    parser.add_argument("--bench", type=Path, nargs="+", default=[], metavar="FILE", help="JSON of benchmarks")
    asked = parser.parse_args()
    if asked.terminal and not asked.run:
        parser.error("--terminal needs RUN")
    folders = {"lab": asked.run, "lab-full": asked.full, "smollm2": asked.real}
    reports = {name: folder / "report" / "results.json" for name, folder in folders.items() if folder}
    sources = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in reports.items()}
    for name, results in sources.items():
        if "answer" not in results:
            parser.error(f"the report of {folders[name]} is of an earlier version: sftknow report {folders[name]}")
    sources |= {path.name: json.loads(path.read_text(encoding="utf-8")) for path in asked.bench}
    if asked.arena:
        if not (asked.arena / "arena").is_dir():
            parser.error(f"{asked.arena} has no arena: sftknow run arena --out {asked.arena}")
        arena = compose(asked.arena)
        sources["arena"] = arena.results
        if arena.figure:
            ARENA_PICTURE.write_text(arena.figure.panels[0].svg, encoding="utf-8")
    if asked.terminal:
        sources["terminal"] = terminal(asked.run)
    if asked.full:
        PICTURE.parent.mkdir(exist_ok=True)
        shutil.copyfile(asked.full / "report" / "figures" / f"{figure_of(sources['lab-full'])}.svg", PICTURE)
    for path in FILES:
        before = path.read_text(encoding="utf-8")
        after = written(before, sources)
        if after != before:
            path.write_text(after, encoding="utf-8")
        if _PART.search(before):
            print(f"{path.relative_to(ROOT)}: {'unchanged' if after == before else 'written'}")


if __name__ == "__main__":
    main()
