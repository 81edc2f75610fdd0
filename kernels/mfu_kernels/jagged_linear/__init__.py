"""A linear map whose weight each row brings along."""

from .op import jagged_linear as jagged_linear
