"""Act on the ledger: predict what a change would win, try it, prove its numbers and its time, keep it or not."""
