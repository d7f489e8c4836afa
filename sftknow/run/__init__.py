"""The only place that composes rooms: facts → grading → training → evaluation → … → report."""
