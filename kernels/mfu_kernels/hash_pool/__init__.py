"""Sum of each row's values that hash as the row's query does."""

from .op import hash_pool as hash_pool
