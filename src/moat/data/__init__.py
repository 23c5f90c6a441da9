"""Datasets: download and verify their files, prepare one tensor file per dataset, serve augmented batches."""
