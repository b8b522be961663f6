"""Training: the loop over compiled chunks, evaluation, and conditions that end a member or a run."""

from popjax.host.training.evaluation import evaluate
from popjax.host.training.start import train

__all__ = ["evaluate", "train"]
