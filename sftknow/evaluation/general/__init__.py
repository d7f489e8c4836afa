"""General ability (the paper's Table 5): XSum with ROUGE and lm-eval's own GSM8K."""
