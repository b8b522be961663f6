"""Drives beside the task's reward: novelty, skills and diversity, for one module each."""
