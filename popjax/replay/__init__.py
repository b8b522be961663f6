"""Replays: stores of transitions.

``ring`` draws uniformly, ``prioritized`` by priority; ``packed`` lays out their rows for the device.
``nstep`` and ``local`` are stages between a lane and a replay: returns of n steps, and Ape-X's local buffer.
``frames`` stores images once, ``episodes`` reads a ring along episodes, and ``good_episodes`` records which
rows belong to good episodes.
"""
