"""The imperative shell: training loop, evaluation, checkpoints, logs and reports.

Everything impure lives here. A method is seen only through its ``Method`` record, so one that is written
outside the package trains, sweeps, checkpoints and logs with no edit here.
"""
