"""sftknow: what did fine-tuning do to what a language model knows, and how to undo the damage.

The names below are the public surface. They are imported when they are first used, so that ``import sftknow`` is light.
`sftknow.run` is both: the function `sftknow.run.python.run`, and the package that it lies in.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftknow.answers import (
        MatchRule as MatchRule,
        Synonyms as Synonyms,
        contains as contains,
    )
    from sftknow.artifacts.checks import CheckResult as CheckResult
    from sftknow.artifacts.comparisons import Comparison as Comparison
    from sftknow.artifacts.divergence import DivergenceResult as DivergenceResult
    from sftknow.artifacts.mastery_data import MasteryData as MasteryData, write_mastery_data as write_mastery_data
    from sftknow.artifacts.repairs import RepairResult as RepairResult
    from sftknow.artifacts.selections import SelectResult as SelectResult
    from sftknow.artifacts.stages import RunDirectory as RunDirectory
    from sftknow.checking.options import CheckOptions as CheckOptions, RepairOptions as RepairOptions
    from sftknow.divergence.analysis import measure_divergence as measure_divergence
    from sftknow.divergence.base import measure_base as measure_base
    from sftknow.divergence.options import DivergenceOptions as DivergenceOptions
    from sftknow.divergence.selection import select_prompts as select_prompts
    from sftknow.errors import (
        CheckpointError as CheckpointError,
        ClusterError as ClusterError,
        DependencyError as DependencyError,
        DeviceError as DeviceError,
        FactsAwayError as FactsAwayError,
        FactsError as FactsError,
        GeneralTaskError as GeneralTaskError,
        HubError as HubError,
        MasteryDataError as MasteryDataError,
        MissingExtraError as MissingExtraError,
        ModelError as ModelError,
        OptionError as OptionError,
        RecipeError as RecipeError,
        RunError as RunError,
        SftknowError as SftknowError,
    )
    from sftknow.evaluation.harness import Harness as Harness
    from sftknow.facts.prompts import statements_for as statements_for
    from sftknow.facts.sources import load_facts as load_facts
    from sftknow.facts.topics import load_topics as load_topics
    from sftknow.grading.options import GradingOptions as GradingOptions
    from sftknow.grading.shards import grade_facts as grade_facts
    from sftknow.grading.transformers_sampler import TransformersSampler as TransformersSampler
    from sftknow.models.loading import load_model as load_model, load_tokenizer as load_tokenizer
    from sftknow.models.options import ModelOptions as ModelOptions
    from sftknow.models.pull import pull as pull
    from sftknow.parameters.change import analyse as analyse
    from sftknow.parameters.in_memory import ModelLevels as ModelLevels, restore_ as restore_
    from sftknow.parameters.options import MethodOptions as MethodOptions, Resources as Resources
    from sftknow.parameters.patch import apply_patch as apply_patch, write_patch as write_patch
    from sftknow.parameters.restore import restore as restore, restore_levels as restore_levels
    from sftknow.parameters.tables import read_plan as read_plan, write_plan as write_plan
    from sftknow.publishing.plan import plan_publication as plan_publication
    from sftknow.publishing.publish import publish as publish
    from sftknow.recipes.load import load_recipe as load_recipe
    from sftknow.recipes.schema import FactsSection as FactsSection
    from sftknow.records import (
        EvalRun as EvalRun,
        Fact as Fact,
        ModelRef as ModelRef,
        RestorePlan as RestorePlan,
        SamplingPolicy as SamplingPolicy,
    )
    from sftknow.report.collect import results as results
    from sftknow.report.compose import write_report as write_report
    from sftknow.run.checking import check as check
    from sftknow.run.experiment import Experiment as Experiment
    from sftknow.run.guard import KnowledgeGuard as KnowledgeGuard
    from sftknow.run.python import (
        RunResult as RunResult,
        compare as compare,
        diverge as diverge,
        evaluate as evaluate,
        grade as grade,
        run as run,
    )
    from sftknow.run.repairing import repair as repair
    from sftknow.run.rescoring import rescore as rescore
    from sftknow.run.selecting import select as select
    from sftknow.selecting.options import SelectOptions as SelectOptions
    from sftknow.shown import Shown as Shown
    from sftknow.training.draws import draw as draw
    from sftknow.training.recipe import SFTRecipe as SFTRecipe
    from sftknow.training.train import fine_tune as fine_tune

__version__ = "0.2.0"

_HOMES = {
    "CheckOptions": "sftknow.checking.options",
    "CheckResult": "sftknow.artifacts.checks",
    "CheckpointError": "sftknow.errors",
    "ClusterError": "sftknow.errors",
    "Comparison": "sftknow.artifacts.comparisons",
    "DependencyError": "sftknow.errors",
    "DeviceError": "sftknow.errors",
    "DivergenceOptions": "sftknow.divergence.options",
    "DivergenceResult": "sftknow.artifacts.divergence",
    "EvalRun": "sftknow.records",
    "Experiment": "sftknow.run.experiment",
    "Fact": "sftknow.records",
    "FactsAwayError": "sftknow.errors",
    "FactsError": "sftknow.errors",
    "FactsSection": "sftknow.recipes.schema",
    "GeneralTaskError": "sftknow.errors",
    "GradingOptions": "sftknow.grading.options",
    "Harness": "sftknow.evaluation.harness",
    "HubError": "sftknow.errors",
    "KnowledgeGuard": "sftknow.run.guard",
    "MasteryData": "sftknow.artifacts.mastery_data",
    "MasteryDataError": "sftknow.errors",
    "MatchRule": "sftknow.answers",
    "MethodOptions": "sftknow.parameters.options",
    "MissingExtraError": "sftknow.errors",
    "ModelError": "sftknow.errors",
    "ModelLevels": "sftknow.parameters.in_memory",
    "ModelOptions": "sftknow.models.options",
    "ModelRef": "sftknow.records",
    "OptionError": "sftknow.errors",
    "RecipeError": "sftknow.errors",
    "RepairOptions": "sftknow.checking.options",
    "RepairResult": "sftknow.artifacts.repairs",
    "Resources": "sftknow.parameters.options",
    "RestorePlan": "sftknow.records",
    "RunDirectory": "sftknow.artifacts.stages",
    "RunError": "sftknow.errors",
    "RunResult": "sftknow.run.python",
    "SFTRecipe": "sftknow.training.recipe",
    "SamplingPolicy": "sftknow.records",
    "SelectOptions": "sftknow.selecting.options",
    "SelectResult": "sftknow.artifacts.selections",
    "SftknowError": "sftknow.errors",
    "Shown": "sftknow.shown",
    "Synonyms": "sftknow.answers",
    "TransformersSampler": "sftknow.grading.transformers_sampler",
    "analyse": "sftknow.parameters.change",
    "apply_patch": "sftknow.parameters.patch",
    "check": "sftknow.run.checking",
    "compare": "sftknow.run.python",
    "contains": "sftknow.answers",
    "diverge": "sftknow.run.python",
    "draw": "sftknow.training.draws",
    "evaluate": "sftknow.run.python",
    "fine_tune": "sftknow.training.train",
    "grade": "sftknow.run.python",
    "grade_facts": "sftknow.grading.shards",
    "load_facts": "sftknow.facts.sources",
    "load_model": "sftknow.models.loading",
    "load_recipe": "sftknow.recipes.load",
    "load_tokenizer": "sftknow.models.loading",
    "load_topics": "sftknow.facts.topics",
    "measure_base": "sftknow.divergence.base",
    "measure_divergence": "sftknow.divergence.analysis",
    "plan_publication": "sftknow.publishing.plan",
    "publish": "sftknow.publishing.publish",
    "pull": "sftknow.models.pull",
    "read_plan": "sftknow.parameters.tables",
    "repair": "sftknow.run.repairing",
    "rescore": "sftknow.run.rescoring",
    "restore": "sftknow.parameters.restore",
    "restore_": "sftknow.parameters.in_memory",
    "restore_levels": "sftknow.parameters.restore",
    "results": "sftknow.report.collect",
    "run": "sftknow.run.python",
    "select": "sftknow.run.selecting",
    "select_prompts": "sftknow.divergence.selection",
    "statements_for": "sftknow.facts.prompts",
    "write_mastery_data": "sftknow.artifacts.mastery_data",
    "write_patch": "sftknow.parameters.patch",
    "write_plan": "sftknow.parameters.tables",
    "write_report": "sftknow.report.compose",
}

__all__ = sorted(_HOMES)


if not TYPE_CHECKING:  # a type checker that saw this function would take every name for a public one

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'sftknow' has no attribute {name!r}")
        home = import_module(_HOMES[name])
        # `run` is a package, too, which is bound to that name once anything of it is imported.
        return globals().get(name) or getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__") and name.endswith("__"))})
