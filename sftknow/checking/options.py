"""How two models are checked: options of `sftknow check`."""

from __future__ import annotations

from dataclasses import dataclass

from sftknow.options import Count, NotNegative, Options, Positive


@dataclass(frozen=True, kw_only=True)
class AskingOptions(Options):
    """How facts are asked."""

    templates: Count = 6
    """Statements of a fact asked in one round over the facts; at least 2. Further rounds ask the others."""
    samples: Count = 2
    """Continuations drawn for each statement."""
    temperature: Positive = 0.7
    """Sampling temperature."""
    max_new_tokens: Count = 32
    """Longest continuation in tokens."""
    block: Count = 48
    """Facts asked at once: what a kill can cost."""
    seed: int = 0
    """Seed of the draws and of the order of facts."""
    minutes: Positive = 10.0
    """Time for asking both models. Less is used where the answer is there earlier."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions(AskingOptions):
    """How long facts are asked, how exact the answer shall be, and what counts as a loss."""

    precision: Positive = 1.5
    """Go on until the share of knowledge that is kept is known to within so many points (95 % interval), unless the
    verdict is beyond doubt before."""
    margin: NotNegative = 2.0
    """Loss, in points of the base's knowledge, that does not matter."""
    retry: Count = 100
    """Lost facts, those that lost most first, that are asked again in other ways."""


@dataclass(frozen=True, kw_only=True)
class RepairOptions(AskingOptions):
    """How candidates of a repair are compared, and what must not be lost."""

    minutes: Positive = 30.0
    """Time for all asking; at most about so much is used."""
    margin: NotNegative = 2.0
    """Loss or gain, in points of the base's knowledge, that does not matter."""
    keep_margin: NotNegative = 1.0
    """Loss, in points, of what fine-tuning taught that may be paid for a repair."""
    keep_rows: Count = 400
    """Rows of --keep that are asked at most; half of them to choose, half to confirm."""
