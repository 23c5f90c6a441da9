"""What to run: YAML files behind closed schemas, and the study grid made of them. No torch here."""
