"""Latent action models and their parts: encoders, bottlenecks, decoders, heads."""
