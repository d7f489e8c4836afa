"""Publishing models, graded data sets and results to the Hugging Face Hub, with cards."""
