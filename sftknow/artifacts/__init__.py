"""What a run leaves on disk and how it gets there whole: stages, manifests, partial folders, graded data, scores."""
