"""What a model is worth: probes with their controls, a verdict, and the report."""
