"""lamina_research: TODO docstring."""
