"""The command line: one file a command, which parses, calls one library function and prints."""

from .app import app as app
from .app import main as main
