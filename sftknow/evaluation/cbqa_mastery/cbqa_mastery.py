"""What `evaluate.load` loads from this folder; the metric itself is `sftknow.evaluation.metric`."""

from sftknow.evaluation.metric import CbqaMastery

__all__ = ["CbqaMastery"]
