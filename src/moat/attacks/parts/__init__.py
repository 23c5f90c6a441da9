"""What attacks are composed of: spaces, starts, steps, objectives, repetitions; :mod:`moat.attacks` has the list."""
