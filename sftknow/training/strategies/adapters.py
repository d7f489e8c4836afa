"""Strategies that train adapters of peft's beside frozen weights and merge them in; plain LoRA has its own option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sftknow.dependencies import needs
from sftknow.errors import ModelError, first_line
from sftknow.options import Count, Limits
from sftknow.training.strategies.base import STRATEGIES, Scene, Strategy
from sftknow.training.strategies.knowledge import known_statements

if TYPE_CHECKING:
    from sftknow.training.examples import Example
    from sftknow.training.lora import Adapters

_ALL = "all-linear"
"""peft's word for every linear layer but the output head."""


@dataclass(frozen=True, kw_only=True)
class Adapter(Strategy):
    """Adapters on every linear layer but the output head. Usually they want ten times the recipe's learning rate."""

    def config(self) -> Any:
        """peft's configuration of them. Raises ImportError or AttributeError where the installed peft has none."""
        raise NotImplementedError

    def ready(self, scene: Scene, config: Any) -> None:
        """What has to be done to the model before they are put in."""

    def trainer_settings(self) -> dict[str, Any]:
        with needs("peft"):  # before any model is loaded
            self.config()
        return {}

    def adapt(self, scene: Scene) -> Adapters:
        from sftknow.training.lora import Adapters, with_adapters

        with needs("peft"):
            config = self.config()
        try:
            self.ready(scene, config)
            adapted = with_adapters(scene.model, config, scene.seed)
        except ValueError as error:
            raise ModelError(
                f"{self.name} cannot be put onto {type(scene.model).__name__}: {first_line(error)}; change its options"
            ) from None
        return Adapters(model=adapted, settings=None, transposed=frozenset(), wrapped=True)


@STRATEGIES.register("dora")
@dataclass(frozen=True, kw_only=True)
class DoRA(Adapter):
    """LoRA whose updates turn the weights' columns and learn their lengths apart.

    Liu et al. 2024, arXiv 2402.09353; peft's.
    """

    rank: Count = 8
    """Rank of the adapters."""
    alpha: Count = 16
    """The adapters' product is scaled by alpha ÷ rank."""

    def config(self) -> Any:
        from peft import LoraConfig

        return LoraConfig(r=self.rank, lora_alpha=self.alpha, use_dora=True, target_modules=_ALL, task_type="CAUSAL_LM")


@STRATEGIES.register("oft")
@dataclass(frozen=True, kw_only=True)
class OFT(Adapter):
    """Turns the inputs of each linear layer by orthogonal blocks, so that the angles between its neurons stay.

    Orthogonal fine-tuning, Qiu et al. 2023, arXiv 2306.07280; peft's.
    """

    block_size: Count = 32
    """Inputs that are turned together; a divisor of every layer's number of inputs."""

    def config(self) -> Any:
        from peft import OFTConfig

        # Off its own default, an approximation that is not orthogonal.
        return OFTConfig(
            oft_block_size=self.block_size, use_cayley_neumann=False, target_modules=_ALL, task_type="CAUSAL_LM"
        )


@STRATEGIES.register("corda")
@dataclass(frozen=True, kw_only=True)
class CorDA(Adapter):
    """LoRA that starts in the directions that matter least for what the base knows, which are all that it changes.

    Yang et al. 2024, arXiv 2406.05223, in its knowledge-preserved mode; peft's. What the base knows are statements that
    it completes by itself.
    """

    rank: Count = 8
    """Rank of the adapters."""
    statements: Count = 64
    """Statements that the layers' inputs are taken from."""
    known: Annotated[float, Limits(ge=0, le=1)] = 0.5
    """Least R of a fact whose statements are taken, and least share of a statement's own continuations."""

    knows: ClassVar[bool] = True

    def config(self) -> Any:
        from peft import LoraConfig
        from peft.tuners.lora.config import CordaConfig
        from peft.tuners.lora.corda import preprocess_corda  # noqa: F401  asked for before a model is loaded

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.rank,
            init_lora_weights="corda",
            corda_config=CordaConfig(corda_method="kpm"),
            target_modules=_ALL,
            task_type="CAUSAL_LM",
        )

    def ready(self, scene: Scene, config: Any) -> None:
        from peft.tuners.lora.corda import preprocess_corda

        # The preparation does not know peft's word for all of them.
        config.target_modules = set(linear_layers(scene.model))
        examples = known_statements(
            scene, "corda", known=self.known, count=self.statements, without=(), object_only=False
        )
        preprocess_corda(scene.model, config, run_model=lambda: _read(scene.model, examples))


@STRATEGIES.register("osf")
@dataclass(frozen=True, kw_only=True)
class OSF(Adapter):
    """Freezes the largest singular directions of each weight and trains the others, at right angles to them.

    Orthogonal subspace fine-tuning, Nayak et al. 2025, arXiv 2504.07097; peft's.
    """

    kept: Annotated[float, Limits(gt=0, lt=1)] = 0.5
    """Share of each weight's singular directions that is frozen."""

    def config(self) -> Any:
        from peft import OSFConfig

        return OSFConfig(effective_rank=self.kept, target_modules=_ALL, task_type="CAUSAL_LM")


def linear_layers(model: Any) -> list[str]:
    """Names within their modules, such as ``q_proj``, of all linear layers but the output head."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    found = (
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    )
    return sorted(set(found))


def _read(model: Any, examples: Sequence[Example]) -> None:
    """Let the model read sequences one by one: what is collected there takes no batches."""
    import torch

    device = next(model.parameters()).device
    for example in examples:
        model(input_ids=torch.tensor([example.input_ids], device=device), use_cache=False)
