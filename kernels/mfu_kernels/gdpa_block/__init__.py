"""Kunlun's feed-forward block: GDPA between two norms and two residuals."""

from .op import gdpa_block as gdpa_block
from .op import gdpa_block_kvpacked as gdpa_block_kvpacked
