"""What everything else builds on: errors, files, progress, signals, numbers, and the names of plug-ins."""
