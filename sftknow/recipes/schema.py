"""What a recipe may say. A section is the option class of the room that does the work; unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from sftknow.artifacts.choice import ChooseBy
from sftknow.cluster import Cluster
from sftknow.divergence.options import DivergenceOptions
from sftknow.errors import OptionError
from sftknow.evaluation.options import AbilityOptions, EvaluationOptions
from sftknow.grading.options import GradingOptions
from sftknow.options import Bucket, Count, Dtype, Level, Limits, Options, Pattern, from_settings, shown_as
from sftknow.parameters.options import METHODS, PairOptions
from sftknow.prompts import CHAT
from sftknow.records import BUCKETS
from sftknow.registry import Registered
from sftknow.training.recipe import (
    STRATEGIES,
    AccelerateOptions,
    LoraSettings,
    SFTRecipe,
    Strategy,
    TrainingOptions,
)

ModelName = Annotated[str, Pattern(r"[A-Za-z][A-Za-z0-9_.-]*", "a name of letters, digits, '_', '.' and '-'")]
RunName = Annotated[str, Pattern(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a name of letters, digits, '_', '.' and '-'")]


@dataclass(frozen=True, kw_only=True)
class ModelSection(Options):
    """The base model, and how all models of the run are loaded."""

    path: str = "lab"
    """``lab`` (the model that ships with sftknow), a folder, or ``org/name`` on the Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    dtype: Dtype | Literal["auto"] = "auto"
    """Dtype for grading and evaluation; ``auto`` is what the model's config names, as in lm-eval. Divergence has its
    own."""
    batch_size: Count = 128
    """Questions at once in evaluation and divergence."""
    device: str = "auto"
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1`` …, or ``spread``: layers over all GPUs."""

    @property
    def named_dtype(self) -> Dtype | None:
        """The dtype to load in, None for ``auto``."""
        return None if self.dtype == "auto" else self.dtype


@dataclass(frozen=True, kw_only=True)
class FactsSection(Options):
    """Which facts are graded, learned and asked."""

    source: str = "lab"
    """``lab``, ``entity-questions`` (downloads the official data), its folder or .zip, a JSONL, CSV, TSV, JSON or
    Parquet file, or a Hub data set."""
    columns: str | None = field(default=None, metadata=shown_as("NAME=COLUMN,…"))
    """Which column of a table is what: ``subject=city,object=mayor``, or ``popqa``, ``triviaqa``, ``questions``."""
    limit: Count | None = None
    """At most this many training facts, balanced over topics, and of each other split about a quarter of that; None for
    all."""
    seed: int = 0
    """Of the draw that ``limit`` makes."""
    disjoint: bool = False
    """Leave out dev, test and testood questions that are training questions too.

    The paper keeps the splits of EntityQuestions as they are, where 133 of the 9,555 test questions are training
    questions too, and so does this; they are counted when the facts are read."""
    topics: str | None = field(default=None, metadata=shown_as("FILE"))
    """Topics file, merged over the paper's 24 topics; ``questions`` for questions without a relation."""
    synonyms: str | None = field(default=None, metadata=shown_as("FILE"))
    """Synonyms file, merged over the paper's Table 12."""
    numbers: bool = False
    """Also accept other spellings of numbers and dates: ``1,000`` for 1000, ``July 20, 1969`` for 1969-07-20."""


@dataclass(frozen=True, kw_only=True)
class GridSection(Options):
    """Which models are trained: one for each bucket, size and seed."""

    buckets: tuple[Bucket, ...] = BUCKETS
    sizes: tuple[Count | Literal["all"], ...] = (60, 120, 240, 480, 960, 1920, "all")
    """Training facts for each cell."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Draws of each cell, each a training of its own.

    The paper has five draws in 3.3 and three repeats in 3.4; five are the larger number. It calls its spread a
    variance and prints it like a standard deviation, which is what stands here."""
    mixed: bool = False
    """Also draw over all buckets at random (the paper's SFT (Mixed))."""
    lora: bool = False
    """Also train the mixed draws with LoRA (paper, Table 7)."""
    strategies: tuple[Annotated[str, Registered(STRATEGIES)], ...] = ()
    """Also train by these strategies (docs/strategies.md); their options stand under ``strategies``."""
    mixed_sizes: tuple[Count | Literal["all"], ...] | None = None
    """Training facts of the draws over all buckets, whatever they are trained by; None for those of ``sizes``."""
    strategies_on: tuple[Bucket | Literal["mixed"], ...] = ("mixed",)
    """On what: draws over all buckets (``mixed``), and buckets by number."""
    baselines: Mapping[ModelName, str] = field(default_factory=dict)
    """Models that are only evaluated, by a name of your own: ``{instruct: org/name}`` (paper, Table 7)."""
    chat_template: bool = False
    """Ask each of the baselines in its own chat template as well, as NAME-chat.

    The paper does not say how its instruct model is asked (Table 7). The prompt of fine-tuning is the same for all
    and unknown to that model; its own template is how it is meant to be used: the recipes for the paper's models ask
    both."""
    storage: Literal["delta", "full"] = "delta"
    """How fine-tuned models are kept once they are measured: small, as what differs from the base, for `sftknow
    materialize`; or as whole checkpoints."""
    engine: Literal["local", "ray"] = "local"
    """Where cells are trained and measured: in this process one after the other, or each as one task of a Ray cluster
    whose nodes see the run directory. It has no bearing on the result."""
    processes: Count = 1
    """Cells that are trained and measured beside one another on this machine, each in a process with its share of the
    cores; for small models, which leave cores idle. Float sums depend on the threads that share them, and with them the
    last bits of a training."""
    ray: Cluster = field(default_factory=Cluster)

    @property
    def asked(self) -> dict[str, str]:
        """The baselines by the names that they are scored under: NAME, and NAME-chat in the own chat template."""
        chats = {f"{name}{CHAT}": path for name, path in self.baselines.items()} if self.chat_template else {}
        return {**self.baselines, **chats}


@dataclass(frozen=True, kw_only=True)
class RestoreSection(Options):
    """Which fine-tuned models are restored, and how far."""

    cells: tuple[str, ...] | Literal["best", "all"] = "best"
    """Which fine-tuned models are restored: the best on dev, all, or cells by name such as ``b2-n240-s0``,
    or ``b2-n240`` for those of all seeds. A list may hold ``best`` as well.

    The paper restores one model of each kind (Table 4) and does not say which draw; the recipes take the first. It
    reports the best level on the test set; here the level is chosen on the dev split and told on the test split."""
    levels: tuple[Level, ...] | None = None
    """Levels to restore; None for those of ``parameters``."""
    choose_by: ChooseBy = "both"
    """How the best model and its level are chosen: ``acc`` by containment, the paper's measure; ``exact`` by exact
    match; ``both`` by containment among those that do not break the form of the answers: exact match and the share of
    answers that end by themselves fall by at most 2 points, of a model below its base, of a level below the model."""
    controls: Annotated[int, Limits(ge=0)] = 3
    """What a restored model is compared with at the level chosen for it: as much set back at random, in so many draws,
    and all weights moved towards the base; each by the same share, and to the same distance from the base. Scored on
    the test split; 0 for none. Nothing is kept on disk but the scores."""
    layers: Annotated[int, Limits(ge=0)] = 0
    """Also set whole layers back, this many at a time, and score each range on the test split (paper, Table 11);
    0 for none. Nothing is kept on disk but the scores.

    The paper takes four layers at a time (Table 11) and does not say whether their norms go back with them; here they
    stay, as they do wherever else parameters are restored."""
    layer_cells: tuple[str, ...] | None = None
    """Which fine-tuned models that is done for, ``best`` or by name; None for those of ``cells``.

    The paper does not say how many facts the models of Table 11 were trained on. Layers that change little leave the
    accuracies that Table 4 has for 240 facts, so the recipe takes those."""


From = Bucket | Literal["mixed"]
"""Which draws: ``mixed``, over all buckets, or a bucket by its number."""
AfterMethod = Annotated[str, Registered(METHODS)]


@dataclass(frozen=True, kw_only=True)
class ArenaSection(Options):
    """Ways to fine-tune against one another: what was learned, what is kept (docs/strategies.md)."""

    of: tuple[From, ...] = ()
    """The models of which draws are measured, ``mixed`` and buckets by number, whatever they were trained by; none
    where there is no arena."""
    after: tuple[AfterMethod, ...] = (
        *("relative", "absolute", "random", "smallest", "per-tensor"),
        *("interpolation", "lines", "trim"),
    )
    """What is done to each of them afterwards, at a level that is chosen on the dev split."""
    levels: Mapping[AfterMethod, tuple[Level, ...]] = field(default_factory=dict)
    """Levels of such methods that compete, by name: ``{relative: ["5%", "20%"]}``; of the others those of `sftknow
    repair`."""
    ranking_of: tuple[From, ...] = ()
    """The plain models of which draws also tell whether the ranking by relative change is worth anything."""
    ranking: Annotated[tuple[Level, ...], Limits(min_length=1)] = ("20%", "50%")
    """Shares at which that ranking is compared with others, and once more at the distance that each leaves."""
    statements: Count = 2
    """Statements of each fact that are completed."""

    @property
    def draws(self) -> tuple[From, ...]:
        """All draws of which a model is measured."""
        return tuple(dict.fromkeys((*self.of, *self.ranking_of)))

    def check(self) -> None:
        usual = type(self).__dataclass_fields__
        for name, beside in (("after", "of"), ("levels", "of"), ("ranking", "ranking_of"), ("statements", "draws")):
            default = {} if name == "levels" else usual[name].default
            if getattr(self, name) != default and not getattr(self, beside):
                raise OptionError(f"{{key}} has no effect without arena.{beside.replace('draws', 'of')}", (name,))
        for name in self.levels:
            if name not in self.after:
                raise OptionError("{key} has no effect: arena.after does not name it", ("levels", name))
            if not METHODS.get(name).shares:
                raise OptionError("{key}: this method takes no shares; leave its levels out", ("levels", name))


@dataclass(frozen=True, kw_only=True)
class Recipe(Options):
    """One experiment, from facts to report."""

    name: RunName
    description: str = ""
    model: ModelSection = field(default_factory=ModelSection)
    facts: FactsSection = field(default_factory=FactsSection)
    grading: GradingOptions = field(default_factory=GradingOptions)
    sft: SFTRecipe = field(default_factory=SFTRecipe)
    lora: LoraSettings = field(default_factory=LoraSettings)
    strategies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options of the grid's strategies by their names: ``{l2-sp: {strength: 0.01}}``; a strategy without any has its
    defaults."""
    tracking: TrainingOptions = field(default_factory=TrainingOptions)
    accelerate: AccelerateOptions = field(default_factory=AccelerateOptions)
    grid: GridSection = field(default_factory=GridSection)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    divergence: DivergenceOptions = field(default_factory=DivergenceOptions)
    parameters: PairOptions = field(default_factory=PairOptions)
    restore: RestoreSection = field(default_factory=RestoreSection)
    arena: ArenaSection = field(default_factory=ArenaSection)
    general: AbilityOptions = field(default_factory=AbilityOptions)

    def check(self) -> None:
        for name in self.strategies:
            if name not in self.grid.strategies:
                raise OptionError("{key} has no effect: grid.strategies does not name it", ("strategies", name))
            self.strategy(name)
        if not self.grid.strategies and self.grid.strategies_on != GridSection().strategies_on:
            raise OptionError("{key} has no effect without grid.strategies; leave it out", ("grid", "strategies_on"))
        self._check_arena()

    def _check_arena(self) -> None:
        grid, arena = self.grid, self.arena
        mixed = grid.mixed or grid.lora or (grid.strategies and "mixed" in grid.strategies_on)
        plain = {*grid.buckets, *(("mixed",) if grid.mixed else ())}
        trained = {*plain, *(("mixed",) if mixed else ()), *(grid.strategies_on if grid.strategies else ())}
        for key, there in (("of", trained), ("ranking_of", plain)):
            for draw in getattr(arena, key):
                if draw not in there:
                    raise OptionError(f"{{key}}: the grid trains no such model on {draw}", ("arena", key))
        if grid.mixed_sizes is not None and not mixed:
            raise OptionError("{key} has no effect: the grid has no mixed draws", ("grid", "mixed_sizes"))
        if arena.draws and not {"dev", "test"} <= {*self.evaluation.splits}:
            raise OptionError(
                "{key} needs dev and test: an arena chooses on the one and measures on the other",
                ("evaluation", "splits"),
            )
        if grid.processes > 1 and (grid.engine != "local" or self.accelerate.launches):
            other = "grid.engine ray" if grid.engine != "local" else "accelerate"
            raise OptionError(f"{{key}} and {other} do not go together; take one of them", ("grid", "processes"))

    def strategy(self, name: str) -> Strategy:
        """A training strategy with the options that this recipe gives it.

        Raises:
            OptionError: an option that it does not have, or a value that does not fit.
        """
        return from_settings(STRATEGIES.get(name), self.strategies.get(name, {}), ("strategies", name))
