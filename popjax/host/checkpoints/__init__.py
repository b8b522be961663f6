"""Checkpoints: whole States on disk, verified when read."""
