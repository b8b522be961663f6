"""Training methods, one module each; modules ``NAME_*`` are parts of the method ``NAME``.

The module of a method has ``build(env, config) -> Method``, its ``Config`` and a ``METHOD`` recipe; most also
define ``Hyper``, ``State`` and ``Metrics``.
"""
