"""Training methods, a module each; modules ``NAME_*`` are parts of the method ``NAME``.

Every module has ``build(env, config) -> Method``, its ``Config`` and a ``METHOD`` recipe; most also define
``Hyper``, ``State`` and ``Metrics``.
"""
