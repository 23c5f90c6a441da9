"""The machine: which GPUs there are, who holds them, and where a command computes."""
