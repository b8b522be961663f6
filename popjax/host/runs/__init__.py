"""Runs: options, directories, records and results, and the sinks of records."""

from popjax.host.runs.history import Evaluation, History
from popjax.host.runs.run import Result
from popjax.host.runs.tables import Recorded, load

__all__ = ["Evaluation", "History", "Recorded", "Result", "load"]
