"""A sum of Kronecker-factored linear maps of a token matrix."""

from .op import sum_kron_linear as sum_kron_linear
