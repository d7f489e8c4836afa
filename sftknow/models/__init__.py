"""Models: where they lie, what identifies them, loading, what they say of themselves, the Hub."""
