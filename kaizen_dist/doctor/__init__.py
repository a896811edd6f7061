"""`kaizen-dist doctor`: is this machine, these ranks or this cluster fit to train on?

report      findings (ok, warn, fail, each with its cure), as a table or as JSON
checks      the table of checks, each with a time-out; for one machine, or among ranks
versions, devices, limits, storage      checks of one machine
ranks       measurements of every rank, and which of them are out of line
cluster     settings of Slurm, and the doctor across its nodes
"""
