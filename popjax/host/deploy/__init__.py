"""Deployment: policies chosen from runs, exported to files, played in original environments, and filmed."""

from popjax.host.deploy.export import export_policy

__all__ = ["export_policy"]
