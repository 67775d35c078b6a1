"""Tables and pages from result files, beside the paper's numbers."""

from keepaug.report.aggregate import Group, aggregate
from keepaug.report.page import write_report
from keepaug.report.paper import fill_table, load_paper

__all__ = ["Group", "aggregate", "fill_table", "load_paper", "write_report"]
