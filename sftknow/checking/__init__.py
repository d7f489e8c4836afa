"""Two models asked for the same facts: what is kept, what is lost, and how sure that is."""
