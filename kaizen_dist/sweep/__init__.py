"""Many runs from one file: what is varied, where it runs, what came of it.

In comes a sweep file (`spec`), out come a folder of runs, a table over seeds and a page.
`runner` sees to it that every run is there once; a `place` is where runs run.
"""
