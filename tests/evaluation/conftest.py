"""A Hub on loopback that the client in this process may go to, with an empty cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from tests.hub_server import HubServer


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The server; the client's own endpoint, as somebody sets it with HF_ENDPOINT."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with HubServer(tmp_path / "hub") as server:
        address = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        yield server


def upload(hub: HubServer, folder: Path, repo_id: str, repo_type: str) -> str:
    """Put a folder on the server; return the commit."""
    api = HfApi(endpoint=hub.endpoint, token="hf_test")
    api.create_repo(repo_id, repo_type=repo_type, exist_ok=True)
    return str(api.upload_folder(folder_path=folder, repo_id=repo_id, repo_type=repo_type).oid)
