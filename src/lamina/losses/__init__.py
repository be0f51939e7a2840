"""Losses as functions of tensors, free of models."""
