"""Probes, one a file, each with its controls. They read held-out episodes only; the data layer cuts the splits."""
