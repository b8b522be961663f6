"""Training methods, a module each; ``NAME_*`` beside it has what the method ``NAME`` is made of.

Every module exposes ``Config``, ``Hyper``, ``State``, ``Metrics`` and ``build(env, config) -> Method``.
"""
