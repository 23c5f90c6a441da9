"""What attacks are composed of: spaces, steps, objectives, starts, stages."""
