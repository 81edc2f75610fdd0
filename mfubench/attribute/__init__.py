"""From what was measured to who is responsible: kernel-to-module join, roofline verdicts, the MFU loss ledger."""
