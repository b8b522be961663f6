"""The imperative shell: training loop, evaluation, checkpoints, logs and reports.

Everything impure lives here. The host sees a method only through its ``Method`` record, so a method written
outside the package trains, sweeps, checkpoints and logs without any edit here.
"""
