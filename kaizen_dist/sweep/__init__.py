"""Many runs from one file: variants, grids and seeds, here or on a cluster, and their tables.

A sweep file (`spec`) gives a folder of runs (`folder`), a table over seeds and a page. `runner`
brings every run to its end once; an executor (`executors`, `slurm`) starts runs.
"""
