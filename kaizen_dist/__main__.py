"""`python -m kaizen_dist` is `kaizen-dist`."""

from kaizen_dist.engine import signals

# Before the imports of the command, which take their time.
signals.listen()

from kaizen_dist.cli import main  # noqa: E402

main()
