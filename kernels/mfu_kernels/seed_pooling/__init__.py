"""Learned queries that attend to each row's events."""

from .op import seed_pooling as seed_pooling
from .op import seed_pooling_kvpacked as seed_pooling_kvpacked
