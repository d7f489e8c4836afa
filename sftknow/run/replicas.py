"""The sampler that a recipe asks for: in this process, or as replicas on the nodes of a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sftknow.answers import MatchRule
from sftknow.artifacts.files import digest
from sftknow.errors import ModelError
from sftknow.grading.options import GradingOptions
from sftknow.grading.ray_engine import RayEngine
from sftknow.grading.rules import with_rule
from sftknow.grading.samplers import SAMPLERS
from sftknow.grading.sampling import Sampler
from sftknow.grading.shards import Engine
from sftknow.models.identity import files_sha256, weights_sha256
from sftknow.models.resolving import BaseModel, resolve_model
from sftknow.records import ModelRef

_SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class ModelCopy:
    """A model by a name that means the same on every machine, and what it is on the machine that asks. Picklable."""

    model: str
    """``lab``, an absolute folder, or ``org/name@commit``, which the node pulls for itself."""
    dtype: str | None
    fingerprint: str
    """See `model_fingerprint`: what the model is on the machine that asks."""

    def find(self) -> ModelRef:
        """The model's folder on this machine.

        Raises:
            ModelError: the model is not on this machine, or is another one.
        """
        if Path(self.model).is_absolute() and not Path(self.model).is_dir():
            raise ModelError(
                f"there is no model at {self.model}; copy it there, use a folder that all nodes share, or a Hub id"
            )
        ref = resolve_model(self.model, None, self.dtype).ref
        if model_fingerprint(Path(ref.path)) != self.fingerprint:
            raise ModelError(f"{ref.path} holds another model than on the machine that asks; copy it there anew")
        return ref


def model_copy(base: BaseModel) -> ModelCopy:
    """How to find the base model on another machine."""
    return ModelCopy(model=_where(base), dtype=base.ref.dtype, fingerprint=model_fingerprint(Path(base.ref.path)))


@dataclass(frozen=True, kw_only=True)
class Replica:
    """Makes the sampler of one model on any machine. Picklable; holds no weights."""

    model: ModelCopy
    section: GradingOptions
    device: str
    rule: MatchRule

    def __call__(self) -> Sampler:
        """The sampler, with the model loaded. Raises ModelError where the model is not here, or is another one."""
        return _load(self.model.find(), self.section, device=self.device, rule=self.rule)


def load_sampler(base: BaseModel, section: GradingOptions, *, device: str, rule: MatchRule) -> Sampler | Engine:
    """What samples the base model as the recipe says.

    Args:
        base: the model.
        section: which sampler, on which engine.
        device: ``auto``, ``cpu``, ``cuda`` …; on a cluster that of every node.
        rule: what a hit is.

    Raises:
        RecipeError: the recipe asks for what does not go together.
        MissingExtraError: vLLM is not installed here.
        ModelError: the model cannot be loaded.
        DeviceError: this machine lacks the device.
    """
    vllm = section.vllm
    if section.engine == "local":
        return _load(base.ref, section, device=device, rule=rule)
    on_gpus = section.sampler == "vllm" and device == "cuda"
    gpus = float(vllm.tensor_parallel * vllm.data_parallel) if on_gpus else None
    cluster = section.ray.on_device(device, option="--device", gpus=gpus)
    return RayEngine(load=Replica(model=model_copy(base), section=section, device=device, rule=rule), cluster=cluster)


def model_fingerprint(folder: Path) -> str:
    """SHA-256 (hex) of a model's weights and of the small files that decide its answers, the same on every machine."""
    return digest([weights_sha256(folder), files_sha256(folder, _SMALL_FILES)])


def _load(ref: ModelRef, section: GradingOptions, *, device: str, rule: MatchRule) -> Sampler:
    return with_rule(SAMPLERS.get(section.sampler)(ref, section, device), rule)


def _where(base: BaseModel) -> str:
    """The model by a name that means the same on every machine."""
    if base.name == "lab":
        return "lab"
    if Path(base.name).is_dir():
        return str(Path(base.ref.path).absolute())
    return str(replace(ModelRef.parse(base.name), dtype=None))
