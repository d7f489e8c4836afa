"""`sftknow divergence`: several fine-tuned models against one base, and what it refuses."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sftknow.artifacts.divergence import read_divergence
from sftknow.artifacts.manifests import write_manifest
from sftknow.artifacts.mastery_data import write_mastery_data
from sftknow.cli.main import main
from sftknow.divergence.options import DivergenceOptions
from sftknow.errors import CheckpointError, MasteryDataError, ModelError
from sftknow.models.identity import weights_sha256
from sftknow.parameters.options import PairOptions
from sftknow.records import ModelRef
from sftknow.run.checkpoint_pairs import analyse_pair
from sftknow.run.token_pairs import diverge_pairs
from tests.tiny import graded, tiny_facts, tiny_llama, tiny_tokenizer

OPTIONS = DivergenceOptions(window=12, device="cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, Path]:
    """A base, two models of the same architecture with other weights, and facts that the base graded."""
    root = tmp_path_factory.mktemp("pairs")
    tokenizer = tiny_tokenizer()
    base = tiny_llama(root / "base" / "m", tokenizer)
    near, far = (moved(base, root / name / "m", by) for name, by in (("a", 0.01), ("b", 0.03)))
    letters = tuple(chr(i) for i in range(33, 127))
    facts = [dataclasses.replace(f, aliases=letters) for f in tiny_facts(16, split="test")]
    rows = [graded(fact, 4 if i % 2 else 1) for i, fact in enumerate(facts)]
    write_mastery_data(root / "data", rows, {"graded_by": "the base", "graded_by_sha256": weights_sha256(base)})
    return base, near, far, root / "data"


def moved(base: Path, out: Path, by: float) -> Path:
    """A copy of a model whose weights went a little way, as fine-tuning takes them."""
    shutil.copytree(base, out)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: values + by * torch.randn(values.shape, generator=generator)
        for name, values in load_file(base / "model.safetensors").items()
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def ref(folder: Path) -> ModelRef:
    return ModelRef(path=str(folder), dtype="float32")


def test_several_models_get_a_folder_each(models: tuple[Path, ...], tmp_path: Path) -> None:
    base, near, far, data = models
    models_of = [ref(base), ref(near), ref(far)]
    found = [result.summary for result in diverge_pairs(ref(base), models_of, data, OPTIONS, out=tmp_path)]
    assert found[0].beside is not None
    assert found[0].beside.mean == 0.0 < found[0].mean, "the base shown its own text again, and the question"
    assert found[1].mean != found[2].mean > 0
    assert list(found[1].by_bucket) == ["1", "4"]
    assert [read_divergence(tmp_path / f"{i}-m").summary for i in range(3)] == found
    (alone,) = diverge_pairs(ref(base), [ref(far)], data, OPTIONS, out=tmp_path / "one")
    assert alone.summary == found[2]
    assert len(alone.to_pandas()) == alone.summary.count + sum(group.count for group in [alone.summary.by_bucket["1"]])
    assert "nats" in alone.headline()
    assert read_divergence(tmp_path / "one").summary == found[2]


def test_facts_that_another_model_was_graded_on_are_refused(models: tuple[Path, ...]) -> None:
    base, near, _, data = models
    with pytest.raises(MasteryDataError, match=r"graded by the base, not by .*--any-base"):
        list(diverge_pairs(ref(near), [ref(base)], data, OPTIONS, out=None))
    told = dataclasses.replace(OPTIONS, any_base=True)
    assert next(diverge_pairs(ref(near), [ref(base)], data, told, out=None)).summary.mean > 0


def test_a_pair_that_is_none_is_noticed(models: tuple[Path, ...], tmp_path: Path) -> None:
    base, near, _, data = models
    other = tiny_llama(tmp_path / "other", tiny_tokenizer(), seed=7)
    with pytest.raises(ModelError, match=r"was not fine-tuned from .* cosine of .*--any-base"):
        list(diverge_pairs(ref(base), [ref(other)], data, OPTIONS, out=None))
    told = dataclasses.replace(OPTIONS, any_base=True)
    assert next(diverge_pairs(ref(base), [ref(other)], data, told, out=None)).summary.mean > 0
    write_manifest(near, "model", {"base": {"path": str(base), "sha256": weights_sha256(base)}, "sft": {"seed": 0}})
    try:
        with pytest.raises(CheckpointError, match="BASE and TUNED are swapped"):
            list(diverge_pairs(ref(near), [ref(base)], data, told, out=None))
    finally:
        (near / "sftknow.json").unlink()
    noted = analyse_pair(str(base), str(other), ["5%"], PairOptions())
    assert "was hardly fine-tuned from" in noted.notes[-1]
    assert not analyse_pair(str(base), str(near), ["5%"], PairOptions()).notes


def test_the_command_says_it_all(models: tuple[Path, ...], capsys: pytest.CaptureFixture[str]) -> None:
    base, near, far, data = models
    arguments = ["divergence", str(base), str(near), str(far), "--mastery", str(data), "--window", "12"]
    assert main([*arguments, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert str(near) in printed
    assert printed.count("test facts of bucket 4") == 2
    assert "answer's first token" in printed
    assert printed.count("statement that the base completes best, the fine-tuned model the question in the prompt") == 2
    assert printed.count("first 12 tokens of the base’s completion") == 2
    assert printed.count("fine-tuned model shown the statement instead: ") == 2
    assert main([*arguments, "--device", "cpu", "--buckets", "4"]) == 0
    assert "bucket  facts" not in capsys.readouterr().out
    assert main([*arguments, "--buckets", "5"]) == 2
    assert "--buckets should be less than or equal to 4, not '5'" in capsys.readouterr().err
