"""Balanced, seeded draws of training facts from a mastery bucket."""
