"""`python -m kaizen_dist` is `kaizen-dist`."""

from kaizen_dist.distributed import signals


def main() -> None:
    """Run the command; signals are heard before its imports, which take their time."""
    signals.listen()
    from kaizen_dist.cli import main as run

    run()


if __name__ == "__main__":
    main()
