"""The kernels of a workload tuned at the shapes that its step launches them at, and held to that step."""
