"""Reading from and publishing to the Hugging Face Hub."""
