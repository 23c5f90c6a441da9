"""Datasets: fetched and verified, prepared into one tensor file each, served as augmented batches."""
