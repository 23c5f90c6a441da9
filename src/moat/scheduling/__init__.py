"""What jobs cost, in which order they run, which are worth their price, and who holds which GPU. No torch here."""
