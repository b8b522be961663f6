"""Runs: options, directories, records and results, sinks of records, the best policies, and launchers."""

from popjax.host.runs.history import Evaluation, History
from popjax.host.runs.run import Result
from popjax.host.runs.tables import Recorded, load

__all__ = ["Evaluation", "History", "Recorded", "Result", "load"]
