"""What holds for every test: no network beyond loopback, one thread a process, nothing sent anywhere."""

from __future__ import annotations

import os
from pathlib import Path

# Before any import of the Hub's client, which reads its environment once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
os.environ.setdefault("HF_HUB_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# Before torch: several processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from sftknow.machine import available_processors
from tests.tiny import tiny_llama, tiny_mastery_data, tiny_tokenizer


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker more than cores: some tests wait for servers, launchers and killed processes."""
    return available_processors() + 1


@pytest.fixture(scope="session")
def entity_questions() -> Path:
    """The EntityQuestions folder, or a skip that says how to get it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "entity_questions"
    folder = Path(os.environ.get("ENTITY_QUESTIONS", beside))
    if not (folder / "train").is_dir():
        pytest.skip("EntityQuestions is not here; set ENTITY_QUESTIONS to the unpacked data set's folder")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with its tokenizer. Read only: it is shared by the whole session."""
    folder = tmp_path_factory.mktemp("tiny-model")
    return tiny_llama(folder / "model", tiny_tokenizer())


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small graded data set with four facts in every bucket of every split. Read only."""
    return tiny_mastery_data(tmp_path_factory.mktemp("tiny-data") / "dataset")
