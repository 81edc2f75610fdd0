"""What a GPU that need not be here can give a workload: whether it fits, the least time of a step, the most MFU."""
