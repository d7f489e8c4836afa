"""The only place that composes rooms: facts → mastery → … → report."""
