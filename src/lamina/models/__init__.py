"""lamina.models: TODO docstring."""
