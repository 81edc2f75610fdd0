"""What kernels are made for: dtypes, head dimensions, row widths."""

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MIN_HEAD_DIM, MAX_HEAD_DIM = 8, 256
HEAD_DIMS = MIN_HEAD_DIM, MAX_HEAD_DIM
MAX_ROW_WIDTH = 16_384
