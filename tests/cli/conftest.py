"""The test Hub."""

from tests.hub_fixtures import hub, naps

__all__ = ["hub", "naps"]
