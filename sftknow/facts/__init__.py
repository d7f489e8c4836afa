"""Facts and the statements made of them: topics, sources, prompts."""
