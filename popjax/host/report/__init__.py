"""Reports: pictures of learning curves, and a page of figures and tables about runs."""

from popjax.host.report.curve import learning_curve
from popjax.host.report.write import Report, report

__all__ = ["Report", "learning_curve", "report"]
