"""Training methods, a module each; modules ``NAME_*`` are parts of the method ``NAME``.

Every module exposes ``Config``, ``Hyper``, ``State``, ``Metrics`` and ``build(env, config) -> Method``.
"""
