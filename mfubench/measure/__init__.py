"""The four passes, never merged (timing, count, trace, memory), and what bounds them: peaks, clocks, environment."""
