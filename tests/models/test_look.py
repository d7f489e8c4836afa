"""A look at a model on the Hub, without fetching its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from sftknow.errors import HubError
from sftknow.models.look import UnreachableError, look
from sftknow.models.pull import pull
from sftknow.records import ModelRef
from tests.hub_server import HubServer


@pytest.fixture
def on_hub(hub: HubServer, tiny_model: Path) -> Path:
    """The tiny model as a repository of the server, readable by all; its folder."""
    hub.put("model", "org/tiny", {path.name: path.read_bytes() for path in tiny_model.iterdir()}, private=False)
    return tiny_model


def test_size_and_dtype_without_the_weights(on_hub: Path, tmp_path: Path) -> None:
    found = look(ModelRef(path="org/tiny"))
    assert found.weights == (on_hub / "model.safetensors").stat().st_size
    assert found.dtype == json.loads((on_hub / "config.json").read_text())["dtype"]
    assert found.name.startswith("org/tiny@")
    assert found.cached is None
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_copy_in_the_cache_is_found(on_hub: Path) -> None:
    folder = pull("org/tiny", repo_type="model")
    assert look(ModelRef(path="org/tiny")).cached == folder


def test_a_wrong_name_is_an_error_and_a_silent_hub_is_not(on_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="org/tinny is not on the Hub"):
        look(ModelRef(path="org/tinny"))
    with pytest.raises(HubError, match="has no revision v9"):
        look(ModelRef(path="org/tiny", revision="v9"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableError):
        look(ModelRef(path="org/tiny"))


def test_offline_the_cache_is_looked_at(on_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull("org/tiny", repo_type="model")
    before = look(ModelRef(path="org/tiny"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = look(ModelRef(path="org/tiny"))
    assert (found.name, found.weights, found.dtype, found.cached) == (before.name, before.weights, before.dtype, folder)


def test_a_model_without_safetensors_is_refused(hub: HubServer) -> None:
    hub.put("model", "org/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle"}, private=False)
    with pytest.raises(HubError, match="no safetensors weights"):
        look(ModelRef(path="org/old"))
