"""lamina.inference: TODO docstring."""
