"""The report of an audit: one page that needs nothing else, the numbers as JSON, a section for a model card.

Needs jinja2 and matplotlib; Pillow for thumbnails.
"""

from fair_prune_plugins.audit.report.card import model_card
from fair_prune_plugins.audit.report.page import render
from fair_prune_plugins.audit.report.writing import AuditFiles, write_report

__all__ = ["AuditFiles", "model_card", "render", "write_report"]
