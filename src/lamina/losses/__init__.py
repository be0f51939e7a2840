"""lamina.losses: TODO docstring."""
