"""The report: RUN/evaluation.json as one HTML page."""
