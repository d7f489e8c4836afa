"""How far the first predicted token moved: KL divergence from the base."""
