"""How well a base model masters each fact: sampling and grading."""
