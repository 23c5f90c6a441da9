"""Plan a grid: what is left to do, what it costs, how long it takes on N machines, and what fits a budget."""
