"""`lamina compare`: every method on one backbone, one dataset and one budget, and one table of what `lamina evaluate` measures of each."""
