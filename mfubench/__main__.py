"""``python -m mfubench``: the command line without an installation."""

from mfubench.cli import main

if __name__ == "__main__":  # a worker process imports its parent's main module
    main()
