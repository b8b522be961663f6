"""Reports: learning curves as pictures, and a page about what runs have come to."""

from popjax.host.report.curve import learning_curve
from popjax.host.report.write import Report, report

__all__ = ["Report", "learning_curve", "report"]
