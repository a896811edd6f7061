"""Slurm: put a run on a cluster from its login node, and bring it home whatever the queue does.

    resources     what is asked for: nodes, GPUs, time, ..., from a profile file and flags
    cluster       what Slurm says of partitions, nodes and jobs
    checks        what can be known to be wrong before anything is queued
    job           what a job runs: RUN/slurm, with copies of code and configuration
    submission    the jobs of a run, through submitit: one, a chain, an array
    attempt       in the job: starts the ranks, and says how they ended
    ledger        RUN/slurm/attempts.jsonl, and what follows from it: go on, or stop and why
    guard         a small job that waits for a failed one, and submits it again
    status, logs  how runs are doing, for the person who watches

Nothing here imports torch at its top: the batch shell's process starts at once.
"""
