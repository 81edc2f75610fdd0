"""The performance gate: a change held against the code that it starts from, in counts, compiled code and time."""
