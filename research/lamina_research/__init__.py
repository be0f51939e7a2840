"""Claims of the papers as experiments, and the linear theory; imports lamina, and nothing in lamina imports it."""
