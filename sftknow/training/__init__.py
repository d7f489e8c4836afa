"""Supervised fine-tuning through TRL, with every dtype named."""
