"""Names of what tells format from knowledge: an evaluation of the base with solved examples, and facts graded again."""

from __future__ import annotations

EXAMPLES = "base-examples"
"""Name of the base's evaluation with solved training questions before each question."""
KNOWLEDGE = "knowledge.json"
"""In ``knowledge/<model>/``: mastery before and after, over the same facts, statements and random numbers."""
