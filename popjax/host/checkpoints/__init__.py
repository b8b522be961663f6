"""Checkpoints: whole States on disk, checked on the way back, and the best policies beside them."""
