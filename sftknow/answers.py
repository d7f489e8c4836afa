"""Answer matching and synonyms: the one definition of "correct", for grading and evaluation alike.

Three readings of "the output gives the answer", from mild to strict:

- `contains`: the answer is a substring of the output. This is the paper's measure (3.3 and appendix F.1), and its
  faults are known: "Oman" is in "Romania", and "not Mark Twain" contains "Mark Twain".
- `contains_word`: the same, but the answer must not begin or end inside a word.
- `exact_match`: the output is the answer and nothing else, after SQuAD's normalisation.

Which of them makes a hit, and whether case counts, is a `MatchRule`, which grading takes from its recipe. Before any of
them, both sides go through `normalize`:

- Unicode NFC. Composed and decomposed accents become equal, and "Cafe" is not found in a decomposed "Café". NFC and
  not NFKC, because NFKC also equates what differs in meaning ("m²" and "m2", "½" and "1⁄2").
- Every apostrophe form becomes ``'``: the paper's templates and synonyms are typographic, EntityQuestions is ASCII.
- Soft hyphens, zero-width spaces and bidirectional controls go: they are layout, not letters. Joiners (U+200C, U+200D)
  stay, since Persian and the Indic scripts spell with them.
- Runs of white space become one space, none at the ends.
- Case is kept, unless the rule says otherwise; then full Unicode case folding ("ß" is "ss"), the same in every
  language: the Turkish "İ" is "i" with a dot above it and not "i", and "ı" is not "i".
"""

from __future__ import annotations

import hashlib
import json
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sftknow.artifacts.files import read_mapping
from sftknow.errors import FactsError

Match = Literal["contains", "word", "exact"]

_APOSTROPHES = (
    "\u2018\u2019\u201b"  # single quotation marks: left, right (the typographic apostrophe), high reversed
    "`\u00b4\u2032"  # grave and acute used as apostrophes, prime
    "\u02b9\u02bb\u02bc\u02bd\u02be\u02bf\u02c8"  # modifier letters: prime, ʻokina, apostrophe, hamza, ʿayn
    "\u0374\u055a\u05f3\u1fbd\u1fbf\u1fef\u1ffd\ua78c\uff07"  # Greek, Armenian, Hebrew geresh, saltillo, full width
)
_FOLD = str.maketrans(dict.fromkeys(_APOSTROPHES, "'"))
_INVISIBLE = "\u00ad\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
_CLEAN: dict[int, str | None] = {**_FOLD, **dict.fromkeys(map(ord, _INVISIBLE))}

# Scripts that put no space between words: there a neighbouring letter says nothing about where a word ends.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # Han
)
_NUMBER = re.compile(r"-?(\d{1,15}|\d{1,3}(,\d{3}){1,4})(\.\d+)?")
_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
    *("November", "December"),
)
_MONTH = rf"(?P<month>{'|'.join(f'{month}|{month[:3]}[.]?' for month in _MONTHS)})"
_DATES = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        r"\+?(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)(?:[T ]00:00:00(?:\.0+)?Z?)?",
        rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH},? (?P<year>\d{{4}})",
        rf"{_MONTH} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year>\d{{4}})",
    )
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class MatchRule:
    """How answers are compared."""

    case_sensitive: bool = True
    """True, as in the paper's own reading; False finds "USA" in "Sausage", which `contains_word` then refuses."""
    match: Match = "contains"
    """What `Matcher.hit` asks for: ``contains`` (the paper's), ``word`` (`contains_word`) or ``exact``
    (`exact_match`, to which case makes no difference)."""

    def __str__(self) -> str:
        what = {"contains": "contains an answer", "word": "contains an answer as whole words", "exact": "is an answer"}
        case = "" if self.match == "exact" else ", case as it is" if self.case_sensitive else ", whatever the case"
        return f"a text that {what[self.match]}{case}"


DEFAULT_RULE = MatchRule()


def fold_apostrophes(text: str) -> str:
    """Every apostrophe form as ``'``, one character for one: positions stay what they were."""
    return text.translate(_FOLD)


def normalize(text: str, rule: MatchRule = DEFAULT_RULE) -> str:
    """The form in which texts are compared; the module's docstring says what is folded. Idempotent."""
    if text.isascii():
        text = text.replace("`", "'")
        return " ".join((text if rule.case_sensitive else text.lower()).split())
    if not rule.case_sensitive:
        # Unicode's canonical caseless matching folds the decomposed form.
        text = unicodedata.normalize("NFD", text).casefold()
    # Cleaned before composing: an invisible between a letter and its accent would keep the two apart.
    return " ".join(unicodedata.normalize("NFC", text.translate(_CLEAN)).split())


class Matcher:
    """The answers of one fact, prepared once and searched many times.

    Built for text that grows token by token: both methods take whole texts and are cheap enough for every step.
    On growing text ``contains`` stays True once it is, with one exception: a combining accent may still arrive on the
    last letter of the match ("Cafe", then U+0301). ``contains_word`` may turn False again as the last word goes on.

    Args:
        answers: everything that counts as correct.
        rule: how to compare.

    Raises:
        FactsError: there is no answer, or one of them is empty (an empty answer would be in every text).
        TypeError: a single string was given, whose letters would each count as an answer.
    """

    __slots__ = ("_answers", "_given", "_needles", "_rule")

    def __init__(self, answers: Sequence[str], rule: MatchRule = DEFAULT_RULE) -> None:
        self._rule = rule
        self._answers = _normalized(answers, rule)
        self._given = tuple(answers)
        # "New York" decides for "New York City" as well.
        self._needles = tuple(a for a in self._answers if not any(other in a for other in self._answers if other != a))

    def contains(self, text: str) -> bool:
        """Whether some answer is a substring of the text."""
        folded = normalize(text, self._rule)
        for needle in self._needles:  # noqa: SIM110 - twice as fast as any() with a generator
            if needle in folded:
                return True
        return False

    def contains_word(self, text: str) -> bool:
        """Whether some answer stands in the text without a letter, digit or mark right before or after it.

        In scripts that write no spaces (Chinese, Japanese, Thai, …) any place is the edge of a word.
        """
        folded = normalize(text, self._rule)
        return any(_stands_alone(answer, folded) for answer in self._answers)

    def hit(self, text: str) -> bool:
        """Whether a whole, finished text gives an answer in the rule's own sense."""
        if self._rule.match == "word":
            return self.contains_word(text)
        return exact_match(text, self._given) if self._rule.match == "exact" else self.contains(text)


def contains(output: str, answers: Sequence[str], rule: MatchRule = DEFAULT_RULE) -> bool:
    """Whether the output contains an answer: the paper's "correct". Raises as `Matcher` does."""
    return Matcher(answers, rule).contains(output)


def contains_word(output: str, answers: Sequence[str], rule: MatchRule = DEFAULT_RULE) -> bool:
    """Whether the output contains an answer as whole words. Raises as `Matcher` does."""
    return Matcher(answers, rule).contains_word(output)


def exact_match(output: str, answers: Sequence[str], rule: MatchRule = DEFAULT_RULE) -> bool:
    """Whether the output is an answer, after SQuAD's normalisation (Rajpurkar et al., 2016): no case, no
    punctuation (Unicode's as well as ASCII's), no articles.

    An answer of nothing else ("The The", "!!!") is compared with its punctuation and articles instead, so that an
    empty output is never correct. The rule's case makes no difference here; it is taken so that the three functions
    can be called alike. Raises as `Matcher` does.
    """
    caseless = MatchRule(case_sensitive=False)
    whole = normalize(output, caseless)
    bare = _bare(whole)
    return any((_bare(answer) or None) == bare or answer == whole for answer in _normalized(answers, caseless))


def _normalized(answers: Sequence[str], rule: MatchRule) -> tuple[str, ...]:
    """The answers in comparable form, each once."""
    if isinstance(answers, str):
        raise TypeError(f"answers must be a sequence of strings, not the string {answers!r}")
    if not answers:
        raise FactsError("a fact without any answer cannot be matched; give it an object")
    folded = tuple(dict.fromkeys(normalize(answer, rule) for answer in answers))
    if "" in folded:
        raise FactsError(f"an empty answer among {list(answers)!r} would match every output; remove it")
    return folded


def _bare(text: str) -> str:
    """A caseless text without punctuation and articles."""
    letters = "".join(c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", letters).split())


def _in_word(character: str) -> bool:
    """Whether this neighbour would make the match a part of a word."""
    if not (character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"):
        return False
    return _UNSPACED.match(character) is None


def _stands_alone(answer: str, text: str) -> bool:
    start = text.find(answer)
    while start >= 0:
        end = start + len(answer)
        if not (start > 0 and _in_word(text[start - 1])) and not (end < len(text) and _in_word(text[end])):
            return True
        start = text.find(answer, start + 1)
    return False


def spellings(answer: str) -> tuple[str, ...]:
    """Other ways to write a number or a date; empty for anything else.

    ``1000``: ``1,000`` and ``1 000``. ``7``: ``seven``. ``1969-07-20``: ``July 20, 1969``, ``20 July 1969`` and so on.
    What may mean two things (``1.000``, ``07/08/1969``) is left alone.
    """
    text = normalize(answer)
    if _NUMBER.fullmatch(text):
        whole, point, part = text.replace(",", "").partition(".")
        part = part.rstrip("0")
        tail = point + part if part else ""
        grouped = f"{int(whole):,}"
        found = [f"{int(whole)}{tail}", f"{grouped}{tail}", f"{grouped.replace(',', ' ')}{tail}"]
        if not tail and 0 <= int(whole) < len(_WORDS):
            found += [_WORDS[int(whole)], _WORDS[int(whole)].capitalize()]
    else:
        found = _dates(text)
    return tuple(dict.fromkeys(other for other in found if other != text))


def _dates(text: str) -> list[str]:
    match = next((match for form in _DATES if (match := form.fullmatch(text))), None)
    if match is None:
        return []
    named = match["month"].capitalize()
    month = int(named) if named.isdigit() else 1 + next((i for i, m in enumerate(_MONTHS) if m[:3] == named[:3]), 12)
    day, year = int(match["day"]), int(match["year"])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return []
    name = _MONTHS[month - 1]
    ending = "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return [
        f"{year:04}-{month:02}-{day:02}", f"{name} {day}, {year}", f"{day} {name} {year}",
        f"{name} {day}{ending}, {year}", f"{day}{ending} {name} {year}", f"{day}{ending} of {name} {year}",
    ]  # fmt: skip


class Synonyms:
    """Other names that count as correct for an object (appendix F.1, Table 12).

    Args:
        table: for each object the names accepted for it; whether the object is among them makes no difference.
        numbers: also accept other spellings of numbers and dates (`spellings`).

    Attributes:
        sha256: hash of the table's content, for provenance.
    """

    def __init__(self, table: Mapping[str, Sequence[str]], *, numbers: bool = False) -> None:
        self.numbers = numbers
        self._aliases: dict[str, tuple[str, ...]] = {}
        for name, others in table.items():
            own = normalize(name)
            names = {normalize(other): other for other in others}
            names.pop(own, None)
            self._aliases[own] = tuple(names.values())
        text = json.dumps(self._aliases, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        self.sha256 = hashlib.sha256((text + ("+numbers" if numbers else "")).encode()).hexdigest()

    @classmethod
    def load(cls, path: str | Path | None = None, *, numbers: bool = False) -> Synonyms:
        """The paper's 29 rows, and a person's own file merged over them.

        Args:
            path: UTF-8 JSON ``{"object": ["other name", …], …}``. A row whose object is already in the paper's table
                replaces that row, so that a row can also be taken back (``[]``).
            numbers: also accept other spellings of numbers and dates.

        Raises:
            FactsError: the file cannot be read; the message names the row.
        """
        path = None if path is None else Path(path)
        table = _read_table(Path(__file__).with_name("synonyms.json"))
        if path:
            own = _read_table(Path(path).expanduser())
            replaced = {normalize(name) for name in own}
            table = {name: row for name, row in table.items() if normalize(name) not in replaced} | own
        return cls(table, numbers=numbers)

    def aliases(self, object: str) -> tuple[str, ...]:
        """The other names of an object, without the object itself; empty where the table has none."""
        own = self._aliases.get(normalize(object), ())
        return tuple(dict.fromkeys((*own, *spellings(object)))) if self.numbers else own

    def merged(self, object: str, own: Sequence[str]) -> tuple[str, ...]:
        """The table's names of an object and a source's own, each once and without the object itself."""
        names = {normalize(name): name for name in (*self.aliases(object), *own)}
        names.pop(normalize(object), None)
        return tuple(names.values())

    def __len__(self) -> int:
        return len(self._aliases)


def _read_table(path: Path) -> dict[str, list[str]]:
    table = read_mapping(
        path,
        "synonyms",
        example=' like {"South Korea": ["Korea"]}',
        twice="the object {} has two rows; merge them into one",
        same=normalize,
    )
    for number, (name, others) in enumerate(table.items(), start=1):
        where = f"{path}, row {number} ({name!r})"
        if not normalize(name):
            raise FactsError(f"{where}: the object is empty")
        if not isinstance(others, list) or not all(isinstance(other, str) and normalize(other) for other in others):
            raise FactsError(f"{where}: the synonyms must be a list of strings, none of them empty")
    return table
