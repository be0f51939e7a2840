"""One file, one question, each with its controls. Probes see held-out episodes only; the data layer cuts the splits."""
