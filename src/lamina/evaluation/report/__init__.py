"""The report: RUN/evaluation.json as one HTML page."""

from lamina.evaluation.report.page import write_report

__all__ = ["write_report"]
