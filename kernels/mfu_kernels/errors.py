"""What the kernel and model packages raise for input that a caller can mend."""


class InvalidArgument(ValueError):
    """A value that is not allowed; the message says what was given, what is allowed and what to do."""


class UnsupportedImpl(InvalidArgument):
    """An implementation was asked for by name and cannot run here; nothing falls back in silence."""
