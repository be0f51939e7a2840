"""lamina.data.lerobot: TODO docstring."""
