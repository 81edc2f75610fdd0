"""mfubench: how much of a GPU a recommendation model uses, where the rest is lost, and which change gets it back."""

__version__ = "0.1.0"
