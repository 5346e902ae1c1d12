"""Launch environment, process groups, pipeline and tensor parallelism; see README.md."""
