"""Tables, figures and the page, made from the rows of the evaluations and nothing else."""
