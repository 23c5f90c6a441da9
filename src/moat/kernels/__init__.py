"""Everything that makes a model faster and changes no result."""
