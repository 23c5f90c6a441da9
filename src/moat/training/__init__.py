"""The training engine: the only loop, its checkpoints, and the files that a run leaves."""
