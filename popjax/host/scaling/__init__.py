"""Scaling: sweeps as one axis, several devices and processes, launchers of jobs, and memory."""

from popjax.host.scaling.sweep import Member

__all__ = ["Member"]
