"""sftknow: what did fine-tuning do to what a language model knows, and how to undo the damage."""

__version__ = "0.1.0"
