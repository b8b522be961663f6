"""Runs: their options, directory, records and results, and where records go while a run trains."""

from popjax.host.runs.history import Evaluation, History
from popjax.host.runs.run import Result
from popjax.host.runs.tables import Recorded, load

__all__ = ["Evaluation", "History", "Recorded", "Result", "load"]
