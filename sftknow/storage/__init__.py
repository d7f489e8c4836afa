"""What lies on disk and how it gets there whole: run directories, manifests, graded data sets, checkpoints."""
