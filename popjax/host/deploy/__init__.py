"""Deployment: trained policies as files, in the reference environments and on film."""

from popjax.host.deploy.export import export_policy

__all__ = ["export_policy"]
