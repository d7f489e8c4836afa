"""A seeded synthetic world: facts of all 24 topics with unique subjects and shared objects.

Subjects are unique over the whole world. Objects are shared as in the real data: a topic such as "country" has few and
popular ones (drawn by a Zipf law), a topic such as "founder" has nearly one for each subject. No object of a topic is
contained in another one, so that containment matching cannot confuse two answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sftknow.dependencies import import_extra
from sftknow.records import Fact, Split


class TopicText(Protocol):
    """What the world needs to know of a topic; `sftknow.facts.topics.Topic` has it."""

    @property
    def question(self) -> str: ...
    @property
    def templates(self) -> tuple[str, ...]: ...
    @property
    def domain(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class WorldSize:
    """Facts for each topic and part. In-domain topics fill train, dev and test; the others testood (paper, 3.1)."""

    train: int = 230
    dev: int = 30
    test: int = 45
    testood: int = 35


POSITIONS = (
    "goalkeeper", "defender", "midfielder", "striker", "point guard", "shooting guard", "pitcher", "catcher",
    "quarterback", "linebacker", "wide receiver", "fly-half", "hooker", "winger", "shortstop", "power forward",
)  # fmt: skip
GENRES = (
    "jazz", "folk music", "heavy metal", "hip hop", "techno", "reggae", "bluegrass", "opera", "gospel", "ska", "disco",
    "flamenco", "grunge", "ambient music", "punk rock", "swing", "trance", "soul music", "bossa nova", "krautrock",
)  # fmt: skip
LANDMARKS = ("Bridge", "Castle", "Park", "Valley", "Lake", "Forest", "Tower", "Abbey")
SETTLEMENTS = ("Station", "Airport", "Hospital", "Cemetery", "Market", "Library", "Mill", "School")
VENUES = ("Museum", "Festival", "Gallery", "Trophy", "Congress", "Regatta", "Exhibition", "Marathon")
REGIONS = ("Province", "Territory", "Canton", "District", "Prefecture", "Shire", "Republic", "Region")


class _Names:
    """Unique names of every kind, drawn from Faker with a fixed seed."""

    def __init__(self, seed: int) -> None:
        # Unweighted: names by their real frequency would give every fifth person one of a handful of names.
        self._fake = import_extra("faker", "lab").Faker("en_US", use_weighting=False)
        self._fake.seed_instance(seed)
        self._random = random.Random(seed)
        self._used: set[str] = set()

    def unique(self, make: Callable[[], str]) -> str:
        for _ in range(10_000):
            name = make()
            if name not in self._used:
                self._used.add(name)
                return name
        raise ValueError("the pool of names is exhausted; ask for a smaller world")

    def person(self) -> str:
        return self.unique(lambda: f"{self._fake.first_name()} {self._fake.last_name()}")

    def place(self, kinds: Sequence[str]) -> str:
        return self.unique(lambda: f"{self._fake.last_name()} {self._random.choice(kinds)}")

    def city(self) -> str:
        return self.unique(self._fake.city)

    def company(self) -> str:
        return self.unique(self._fake.company)

    def title(self) -> str:
        """Title of a work of two or three words."""
        return self.unique(
            lambda: f"{self._random.choice(('The ', ''))}{self._fake.word().title()} of {self._fake.word().title()}"
        )

    def product(self) -> str:
        return self.unique(lambda: f"{self._fake.word().title()} {self._random.randrange(100, 999)}")

    def country(self) -> str:
        return self._plain(self._fake.country)

    def language(self) -> str:
        return self._plain(self._fake.language_name)

    def profession(self) -> str:
        return self._plain(lambda: self._fake.job().lower())

    def _plain(self, make: Callable[[], str]) -> str:
        """A library name without brackets, commas, slashes or digits, which make poor answers."""

        def attempt() -> str:
            while True:
                name = make()
                if name.replace(" ", "").isalpha():
                    return name

        return self.unique(attempt)


def _apart(names: Iterator[str], count: int) -> list[str]:
    """The first ``count`` names of which none contains another."""
    chosen: list[str] = []
    for name in names:
        if not any(name.lower() in other.lower() or other.lower() in name.lower() for other in chosen):
            chosen.append(name)
        if len(chosen) == count:
            return chosen
    raise ValueError("too few names that stand apart")


def _endless(make: Callable[[], str]) -> Iterator[str]:
    while True:
        yield make()


def _zipf_weights(count: int, exponent: float) -> list[float]:
    return [1.0 / (rank + 1) ** exponent for rank in range(count)]


def build_world(topics: Mapping[str, TopicText], *, size: WorldSize, seed: int = 0) -> list[Fact]:
    """All facts of the world in a fixed order: topic by topic, within a topic train, dev, test or testood.

    Args:
        topics: the 24 topics of the paper's appendix F.2, by relation.
        size: facts for each topic and part.
        seed: the world depends on it, on ``size`` and on the installed release of Faker.

    Raises:
        MissingExtraError: Faker is not installed.
        ValueError: a topic that the world has no names for, or a size its pools of names cannot fill.
    """
    names = _Names(seed)
    draw = random.Random(f"objects-{seed}")
    cities = _apart(_endless(names.city), 160)
    countries = _apart(_endless(names.country), 40)
    universities = _apart((f"University of {c}" for c in _apart(_endless(names.city), 60)), 60)
    counties = _apart(_endless(lambda: names.place(("County",))), 100)
    makers = _apart(_endless(names.company), 60)
    labels = _apart(_endless(lambda: names.place(("Records",))), 40)
    languages = _apart(_endless(names.language), 30)
    professions = _apart(_endless(names.profession), 40)
    people = _apart(_endless(names.person), 1200)
    works = _apart(_endless(names.title), 300)

    # relation: (subject, objects, exponent of the popularity law)
    plans: dict[str, tuple[Callable[[], str], Sequence[str], float]] = {
        "P17": (lambda: names.place(LANDMARKS), countries, 0.7),
        "P19": (names.person, cities, 0.5),
        "P20": (names.person, cities, 0.5),
        "P36": (lambda: names.place(REGIONS), cities, 0.0),
        "P69": (names.person, universities, 0.6),
        "P131": (lambda: names.place(SETTLEMENTS), counties, 0.5),
        "P159": (names.company, cities, 0.5),
        "P276": (lambda: names.place(VENUES), cities, 0.4),
        "P495": (names.title, countries, 0.7),
        "P740": (names.company, cities, 0.5),
        "P112": (names.company, people, 0.0),
        "P127": (lambda: names.place(("Arena", "Hotel", "Plaza", "Stadium", "Estate")), makers, 0.4),
        "P170": (names.title, people, 0.0),
        "P175": (names.title, people, 0.1),
        "P176": (names.product, makers, 0.5),
        "P26": (names.person, people, 0.0),
        "P40": (names.person, people, 0.0),
        "P413": (names.person, POSITIONS, 0.3),
        "P50": (names.title, people, 0.1),
        "P136": (names.person, GENRES, 0.4),
        "P106": (names.person, professions, 0.4),
        "P264": (names.person, labels, 0.4),
        "P407": (names.title, languages, 0.6),
        "P800": (names.person, works, 0.0),
    }
    facts: list[Fact] = []
    for relation, topic in topics.items():
        if relation not in plans:
            raise ValueError(f"the lab's world has no names for topic {relation}")
        subject, objects, exponent = plans[relation]
        weights = _zipf_weights(len(objects), exponent)
        parts: tuple[tuple[Split, int], ...] = (
            (("train", size.train), ("dev", size.dev), ("test", size.test))
            if topic.domain == "in-domain"
            else (("testood", size.testood),)
        )
        for split, count in parts:
            for number in range(count):
                name = subject()
                facts.append(
                    Fact(
                        id=f"{relation}/{split}/{number}",
                        topic=relation,
                        subject=name,
                        object=draw.choices(objects, weights)[0],
                        question=topic.question.format(subject=name),
                        split=split,
                    )
                )
    return facts
