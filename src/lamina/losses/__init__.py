"""Losses as functions of tensors; none of them knows a model."""
