"""The layer between one agent and a method: everything that methods do with a population ``[P]`` in lanes
``[N]``.

``lanes`` plays, ``policy`` chooses actions, ``learning`` takes gradient steps, ``exchange`` hands policies
over, ``scoring`` measures returns, ``imitation`` teaches one policy by others, ``tutoring`` lets teachers of
other tasks teach an ``actor_critic`` that acts. Plain functions and records with explicit inputs and outputs:
the State stays the method's own, and the ``vmap`` over individuals lives here.
"""
