"""lamina.evaluation: TODO docstring."""
