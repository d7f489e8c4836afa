"""People's own SFT data, graded by what a model already knows: what to train on, and what to leave out."""
