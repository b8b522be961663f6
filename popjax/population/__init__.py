"""The layer between one agent and a method: all that methods do with a population ``[P]`` in lanes ``[N]``.

``lanes`` and ``players`` play, ``policy`` and ``acting`` choose actions, ``learning`` and ``learners`` take
gradient steps, ``offpolicy`` and ``onpolicy`` join these to ``parts`` of a method, ``drives`` reward novelty
and skills, ``exchange`` hands policies over, ``scoring`` and ``judging`` measure returns, ``imitation``
trains one policy on others' answers, ``tutoring`` lets teachers of other tasks teach an ``actor_critic`` that
acts, a ``shared_critic`` judges several actors, a ``classifier`` predicts which agent will do best. For
hyperparameters that evolve, ``lineage`` keeps the history, ``schedules`` repeat it and ``counterfactual``
measures what a decision was worth. ``clocks`` compare hyperparameters that count steps with the length of a
run. All are plain functions and records with explicit inputs and outputs: a method owns its State, and this
layer does the ``vmap`` over individuals.
"""
