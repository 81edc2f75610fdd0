"""What a ladder's document and every report of it know under one name: no torch is needed to read them."""

FILE = "scaling.json"  # what the document is called where it is written
FLOPS, DEVICE_TIME = "flops", "device_time"  # the axes of compute
LEAST_POINTS = 3  # of a law that they can contradict: a line through two has no residual
