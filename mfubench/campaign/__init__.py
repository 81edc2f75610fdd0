"""Everything that a fresh device can be asked, the most valuable first, within a budget of time."""
