"""A selection in words: one sentence, a page of text, Markdown, the card of the data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sftknow.artifacts.selections import DRAW, SelectedExample, SelectResult, Way
from sftknow.records import BUCKETS
from sftknow.untrusted import markdown_line

_SHOWN, _LISTED, _WIDTH = 8, 50, 90
"""Contradicting examples that a terminal and Markdown list, and the characters of a text; the file has all."""

_BUCKETS = ("never right", "up to 25 %", "25 to 50 %", "50 to 75 %", "above 75 %")
_FIFTHS = ("least expected fifth", "second", "middle", "fourth", "most expected fifth")
FORMS = {
    "solved examples first": "after solved examples of the same data, so that its format plays no part",
    "plain": "asked plainly, as before SFT: after solved examples it does no better",
    "statements": "completing statements, as the paper grades facts",
}


def sentence(model: str, examples: Sequence[SelectedExample], size: int) -> str:
    """What is proposed and what is left aside."""
    drawn = [example for example in examples if example.drawn]
    sampled = [example for example in examples if example.way == "samples"]
    unknown = sum(example.bucket == 0 for example in sampled)
    buckets = sorted({example.bucket for example in drawn})
    parts = [f"{sum(example.bucket == bucket for example in drawn):,} of bucket {bucket}" for bucket in buckets]
    if not drawn:
        line = f"Nothing to draw from: no example of the {len(examples):,} is in the buckets asked for"
    else:
        line = f"Train on {len(drawn):,} of {len(examples):,} examples: {_joined(parts)}"
        if len(drawn) < size:
            line += f" (there are no more; {size:,} were asked for)"
    if sampled:
        line += f"; {unknown:,} of {len(sampled):,} short answers teach what {model} does not know"
        against = sum(example.contradicts for example in examples)
        line += f", {against:,} of them against what it surely says" if against else ""
    return line + "."


def text(result: SelectResult) -> str:
    """The whole result for a terminal."""
    return "\n".join(_lines(result))


def _lines(result: SelectResult) -> Iterator[str]:
    yield result.sentence
    yield ""
    yield f"data   {result.data}"
    yield f"model  {result.model}"
    yield from result.notes
    for reason, count in result.left_out.items():
        yield f"left out: {count:,} ({reason})"
    for way, title in _titles(result):
        yield ""
        yield title
        yield f"  {'bucket':<8}{'':<22}{'examples':>10}{'drawn':>8}"
        for bucket, name, count, drawn in _rows(result, way):
            yield f"  {bucket:<8}{name:<22}{count:>10,}{drawn:>8,}"
    against = result.contradicting
    if against:
        yield ""
        yield f"against what the model surely says ({len(against):,}); it may be the data that are wrong"
        for example in against[:_SHOWN]:
            yield (
                f"  {_short(example.prompt)}   teaches {_short(example.answer)!r}, the model says "
                f"{_short(example.says)!r} ({_percent(example.says_share)})"
            )
    yield ""
    if result.out is None:
        yield "nothing is written; --out DIR writes the draw and the buckets, and nothing is asked again for it"
    elif result.drawn:
        yield f"train with it: SFTTrainer(…, train_dataset=load_dataset({result.out!r}, split='train'))"
    else:
        yield f"the buckets are in {result.out}"


def markdown(result: SelectResult) -> str:
    """The result as Markdown."""
    lines = [f"**{_quoted(result.sentence)}**", "", f"{_quoted(result.data)}, asked of {_quoted(result.model)}."]
    lines += [f"{_quoted(note)}." for note in result.notes]
    lines += [f"Left out: {count:,} ({_quoted(reason)})." for reason, count in result.left_out.items()]
    lines += _tables(result)
    against = result.contradicting
    if against:
        lines += ["", f"<details><summary>{len(against):,} against what the model surely says</summary>", ""]
        lines += ["| asked | the data say | the model says | share |", "| --- | --- | --- | ---: |"]
        lines += [
            f"| {_quoted(_short(e.prompt))} | {_quoted(_short(e.answer))} | {_quoted(_short(e.says))} | "
            f"{_percent(e.says_share)} |"
            for e in against[:_LISTED]
        ]
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def card(result: SelectResult) -> str:
    """``README.md`` of the data set: its configurations for `load_dataset`, and what they are."""
    filled = [
        bucket
        for bucket in BUCKETS
        if any(example.bucket == bucket for example in result.examples)  # a split without rows loads for nobody
    ]
    lines = ["---", "configs:"]
    if result.drawn:
        lines += ["- config_name: draw", "  default: true", "  data_files:"]
        lines += ["  - split: train", f"    path: {DRAW}"]
    lines += ["- config_name: buckets", "  data_files:"]
    for bucket in filled:
        lines += [f"  - split: bucket_{bucket}", f"    path: buckets/bucket_{bucket}.parquet"]
    lines += ["---", "", "# SFT data, graded by what a model knows", "", _quoted(result.sentence), ""]
    lines += [f"Made by sftknow from {_quoted(result.data)}; the model that was asked is {_quoted(result.model)}."]
    lines += _tables(result)
    lines += ["", "```python", "from datasets import load_dataset", ""]
    if result.drawn:
        lines += ['draw = load_dataset("PATH", split="train")  # for SFTTrainer(..., train_dataset=draw)']
    lines += ['buckets = load_dataset("PATH", "buckets")', "```", ""]
    lines += ["Columns that begin with `sftknow_` say how the model did; the others are those of the data."]
    return "\n".join(lines) + "\n"


def _tables(result: SelectResult) -> list[str]:
    lines = []
    for way, title in _titles(result):
        lines += [
            "",
            title[0].upper() + title[1:],
            "",
            "| bucket | | examples | drawn |",
            "| ---: | --- | ---: | ---: |",
        ]
        lines += [f"| {bucket} | {name} | {count:,} | {drawn:,} |" for bucket, name, count, drawn in _rows(result, way)]
    return lines


def _titles(result: SelectResult) -> Iterator[tuple[Way, str]]:
    if any(result.counts("samples")):
        rates = ", ".join(f"{form} {_percent(rate)}" for form, rate in result.rates.items())
        form = FORMS.get(result.form or "", "")
        yield "samples", f"short answers, by how often the model gives them {form} (mean: {rates})"
    if any(result.counts("probability")):
        yield (
            "probability",
            (
                "long answers, by how probable the model finds the answer as it stands (mean log-probability a token): "
                "fifths of these data, no measure of what it knows"
            ),
        )


def _rows(result: SelectResult, way: Way) -> Iterator[tuple[int, str, int, int]]:
    names = _BUCKETS if way == "samples" else _FIFTHS
    yield from zip(BUCKETS, names, result.counts(way), result.counts(way, drawn=True), strict=True)


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _short(words: str) -> str:
    words = " ".join(words.split())
    return words if len(words) <= _WIDTH else f"{words[: _WIDTH - 30]} … {words[-26:]}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _quoted(words: str) -> str:
    return markdown_line(words, "*_")
