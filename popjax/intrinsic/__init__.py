"""Drives, which add a reward to the task's: novelty, skills and diversity, for one module each.

``contrastive``, ``rnd`` and ``diayn`` have a ``Config``, a ``Hyper`` and ``build(spec, config, lanes) ->
Intrinsic``; ``population.drives`` lifts them to a population.
"""
