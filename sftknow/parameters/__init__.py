"""Which parameters fine-tuning changed, and how to set them back."""
