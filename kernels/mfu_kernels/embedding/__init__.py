"""Look-up of ids in the tables of several fields, which lie in one."""

from .op import embedding as embedding
