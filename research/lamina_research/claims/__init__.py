"""lamina_research.claims: TODO docstring."""
