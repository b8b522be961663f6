"""Scaling: sweeps as one axis, several devices and processes, and memory."""

from popjax.host.scaling.sweep import Member

__all__ = ["Member"]
