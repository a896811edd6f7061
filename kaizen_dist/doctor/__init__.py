"""`kaizen-dist doctor`: is this machine, these ranks or this cluster fit to train on?

finding       one thing that was looked at: ok, warn or fail, what was seen, and the cure
check         runs what looks, each within its time
versions, devices, limits, storage    what one machine tells
ranks         what every rank measures of itself; judging: which of them are out of line
hosts         the findings of several machines as one list
cluster       what Slurm tells;  nodes: the doctor across its nodes
report        all of it, as a table or as JSON
examination   which checks are made, alone or among ranks
"""
