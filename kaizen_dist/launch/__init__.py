"""Slurm: submit a run, and finish it despite preemption, time limits and lost nodes.

    resources        the requested nodes, GPUs, time, ..., from a profile file and flags
    slurm            facts about partitions, nodes and jobs, from Slurm's own commands
    checks           problems that are known before anything is queued
    job              RUN/slurm, with copies of code and configuration
    request          checks a run, writes RUN/slurm, submits it
    submission       the jobs of a run, through submitit: one, a chain, their retry jobs
    following        in a job of one core: looks whether the stream has got new tasks
    attempt          in the job: starts the ranks, and records how they end
    attempts         RUN/slurm/attempts.jsonl, and whether another attempt follows
    progress         how far a run has come, from its files
    status, logs     state and output of runs, for people

Nothing here imports torch at its top: a job's batch shell starts at once.
"""
