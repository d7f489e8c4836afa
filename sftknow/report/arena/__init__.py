"""What an arena says: which method keeps most at equal learning, how sure that is, and what cannot be told."""

from sftknow.report.arena.page import write

__all__ = ["write"]
