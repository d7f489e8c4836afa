"""A Hub that is down: said within seconds, given up within a minute or when a person says."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from sftknow.cli.main import main
from sftknow.errors import HubError
from sftknow.models.hub_client import Connection, Patience
from sftknow.models.pull import pull
from tests.hub_server import Fault, HubServer


class Clock:
    """Sleeps that take no time and count."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.slept, really = 0.0, time.monotonic
        patch.setattr(time, "sleep", self.sleep)
        patch.setattr(time, "monotonic", lambda: really() + self.slept)
        self.start = time.monotonic()

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    @property
    def passed(self) -> float:
        return time.monotonic() - self.start


@pytest.fixture
def clock(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Clock:
    hub.put("model", "org/model", {"config.json": b"{}", "model.safetensors": b"weights"})
    return Clock(monkeypatch)


class Said(logging.Handler):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.at = clock, []

    def emit(self, record: logging.LogRecord) -> None:
        self.at.append(self.clock.passed)


DOWN = [
    Fault("error", "GET", "/api/", status=503),
    Fault("drop", "GET", "/api/"),
    Fault("error", "GET", "/tree/", status=502),
    Fault("error", "HEAD", "/resolve/", status=503),
    Fault("drop", "HEAD", "/resolve/"),
    Fault("error", "GET", "/resolve/", status=504),
    Fault("drop", "GET", "/resolve/"),
]


@pytest.mark.parametrize("fault", DOWN, ids=lambda fault: f"{fault.kind}-{fault.method}-{fault.pattern.strip('/')}")
def test_a_hub_that_is_down_is_told_soon_and_given_up_within_a_minute(
    hub: HubServer, clock: Clock, fault: Fault
) -> None:
    hub.faults.append(Fault(fault.kind, fault.method, fault.pattern, times=10**6, status=fault.status))
    said = Said(clock)
    logging.getLogger("sftknow").addHandler(said)
    try:
        with pytest.raises(HubError, match="again"):
            pull("org/model", repo_type="model", endpoint=hub.endpoint, token="hf_test")
    finally:
        logging.getLogger("sftknow").removeHandler(said)
    assert clock.passed < 60
    assert said.at
    assert said.at[0] < 6


def test_a_person_says_how_long(
    hub: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    hub.faults.append(Fault("error", "GET", "/api/", times=10**6, status=503))
    for wait in (0, 20, 400):
        clock.start = time.monotonic()
        assert main(["pull", "org/model", "--type", "model", "--wait", str(wait)]) == 2
        assert wait / 2 <= clock.passed <= wait + 2
    assert "the Hub answers 503" in capsys.readouterr().err
    assert main(["pull", "org/model", "--wait", "soon"]) == 2
    assert main(["pull", "org/model", "--wait", "-1"]) == 2


def test_long_work_that_breaks_is_no_silence(clock: Clock) -> None:
    rounds = iter(range(4))

    def works_for_an_hour_and_breaks() -> str:
        clock.sleep(3600)
        if next(rounds) < 3:
            raise TimeoutError
        return "done"

    assert Connection(api=None, patience=Patience()).call("org/model", works_for_an_hour_and_breaks) == "done"


def test_the_client_s_own_handlers_come_back(hub: HubServer, clock: Clock, tmp_path: Path) -> None:
    logger = logging.getLogger("huggingface_hub")
    before = (logger.handlers, logger.propagate, logger.level)
    pull("org/model", repo_type="model", endpoint=hub.endpoint, token="hf_test", local_dir=tmp_path / "out")
    assert (logger.handlers, logger.propagate, logger.level) == before
