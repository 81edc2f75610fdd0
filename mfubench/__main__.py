"""``python -m mfubench``, and the command ``mfubench``: the command line."""

import signal


def run() -> None:
    """Run the command line; where it does not listen for Ctrl-C yet, that ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mfubench.cli import main

    main()


if __name__ == "__main__":  # a worker process imports its parent's main module
    run()
