"""`python -m kaizen_dist` is `kaizen-dist`."""

from kaizen_dist.cli import main

main()
