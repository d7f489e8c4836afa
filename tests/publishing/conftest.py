"""The test Hub and finished runs."""

from tests.hub_fixtures import finished_run, hub, naps, restored_model, whole_run

__all__ = ["finished_run", "hub", "naps", "restored_model", "whole_run"]
