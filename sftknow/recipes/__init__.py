"""Recipes: what a run consists of, validated, with the ones that ship."""
