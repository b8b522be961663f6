"""Training methods, one file each.

Every module exposes ``Config``, ``Hyper``, ``State``, ``Metrics`` and ``build(env, config) -> Method``.
"""
