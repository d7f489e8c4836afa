"""The cbqa_mastery tasks of lm-eval: scoring and the in-process harness."""
