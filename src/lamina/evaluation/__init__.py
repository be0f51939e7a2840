"""Evaluation of a trained model: probes with their controls, a verdict, and the report."""
