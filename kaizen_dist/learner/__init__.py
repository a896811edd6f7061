"""The learner: two views of a batch in, the four-term loss out.

An image's walk: `learner` sends both views through `backbone` and the method's projector
(`methods`, one file each, heads from `heads`, formulas from `losses`); `momentum` gives a
method its keys, `teacher` is the model as it was when the task began, and `distill` holds
the student to it. Nothing here knows of files or processes beyond one `gather` it is handed.
"""
