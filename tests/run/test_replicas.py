import pickle
import shutil
from pathlib import Path

import pytest

from sftknow.answers import DEFAULT_RULE, MatchRule
from sftknow.cluster import Cluster
from sftknow.errors import ModelError, RecipeError
from sftknow.grading.options import GradingOptions, VLLMOptions
from sftknow.grading.ray_engine import RayEngine
from sftknow.grading.rules import RuleSampler
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.models.resolving import resolve_base
from sftknow.run.replicas import Replica, load_sampler, model_fingerprint


def section(**options):
    return GradingOptions(engine="ray", ray=Cluster(**options))


def replica_of(base, **options):
    engine = load_sampler(base, section(**options), device="auto", rule=DEFAULT_RULE)
    assert isinstance(engine, RayEngine)
    return engine.load


def test_a_fingerprint_is_that_of_the_files_and_of_nothing_else(tiny_model, tmp_path):
    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    expected = model_fingerprint(tiny_model)
    (copy / "README.md").write_text("a note")
    assert model_fingerprint(copy) == expected
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert model_fingerprint(copy) != expected
        (copy / name).write_bytes(content)
    assert model_fingerprint(copy) == expected


def test_every_byte_of_a_small_model_and_both_ends_of_a_large_one_count(tmp_path):
    file = tmp_path / "model.safetensors"
    for size, places in ((1, [0]), (70_000, [0, 40_000, 69_999]), (9_000_000, [0, 8_999_999])):
        content = bytearray(size)
        file.write_bytes(content)
        before = model_fingerprint(tmp_path)
        for place in places:
            content[place] = 1
            file.write_bytes(content)
            assert model_fingerprint(tmp_path) != before
            content[place] = 0


def test_a_replica_crosses_a_pickle_and_loads_the_model_of_its_machine(tiny_model):
    replica = pickle.loads(pickle.dumps(replica_of(resolve_base(str(tiny_model), None, "float32"))))
    assert isinstance(replica, Replica)
    assert replica.model.model == str(tiny_model)
    assert isinstance(replica(), TransformersSampler)
    lab = replica_of(resolve_base("lab", None, "float32"))
    assert lab.model.model == "lab"


def test_a_replica_finds_a_relative_folder_by_its_whole_path(tiny_model, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    assert replica_of(resolve_base(tiny_model.name, None, None)).model.model == str(tiny_model)


def test_a_model_that_a_machine_lacks_or_has_otherwise_is_refused(tiny_model, tmp_path):
    there = Path(shutil.copytree(tiny_model, tmp_path / "there"))
    replica = replica_of(resolve_base(str(there), None, None))
    weights = there / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match="holds another model than on the machine that asks"):
        replica()
    shutil.rmtree(there)
    with pytest.raises(ModelError, match=rf"there is no model at {there}; copy it there"):
        replica()


def test_the_recipes_rule_and_resources_reach_the_workers(tiny_model):
    base = resolve_base(str(tiny_model), None, None)
    word = MatchRule(match="word")
    asked = section(address="h:1", replicas=3, cpus_per_replica=2.0, wait_seconds=5.0)
    engine = load_sampler(base, asked, device="auto", rule=word)
    assert isinstance(engine.load(), RuleSampler)
    cluster = engine.cluster
    assert cluster == Cluster(address="h:1", replicas=3, cpus_per_replica=2.0, wait_seconds=5.0)
    assert load_sampler(base, asked, device="cpu", rule=word).cluster.gpus_per_replica == 0.0
    vllm = GradingOptions(engine="ray", sampler="vllm", vllm=VLLMOptions(tensor_parallel=4, data_parallel=2))
    assert load_sampler(base, vllm, device="cuda", rule=word).cluster.gpus_per_replica == 8.0
    with pytest.raises(RecipeError, match="--device cuda in place of cuda:1"):
        load_sampler(base, section(), device="cuda:1", rule=word)
