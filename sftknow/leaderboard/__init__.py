"""A leaderboard of a graded data set: what public models score on it, checked, and how sure their ranks are."""
