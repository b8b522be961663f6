"""Checkpoints: whole States on disk, verified when read, and the best policies."""
