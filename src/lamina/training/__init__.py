"""Training: the loop that every stage shares, pretraining of a LAM on frames alone, and its alignment with few labels."""
