"""What the workflow asks of the package: input functions of the rules, warm starts, repair and sharing of results."""
