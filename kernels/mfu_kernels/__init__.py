"""Operations of recommendation models, each with implementations by name and a cost.

Importing this package does not import triton; an op does so when its triton implementation first runs.
"""

from collections.abc import Mapping

from .activations import ACTIVATIONS as ACTIVATIONS
from .cross_attention import cross_attention as cross_attention
from .cross_attention.op import OP as _cross_attention
from .embedding import embedding as embedding
from .embedding.op import OP as _embedding
from .errors import InvalidArgument as InvalidArgument
from .errors import UnsupportedImpl as UnsupportedImpl
from .gdpa import gdpa as gdpa
from .gdpa.op import OP as _gdpa
from .gdpa_block import gdpa_block as gdpa_block
from .gdpa_block import gdpa_block_kvpacked as gdpa_block_kvpacked
from .gdpa_block.op import OP as _gdpa_block
from .hash_pool import hash_pool as hash_pool
from .hash_pool.op import OP as _hash_pool
from .hstu_attention import hstu_attention as hstu_attention
from .hstu_attention.op import OP as _hstu_attention
from .jagged_gru import jagged_gru as jagged_gru
from .jagged_gru.op import OP as _jagged_gru
from .jagged_linear import jagged_linear as jagged_linear
from .jagged_linear.op import OP as _jagged_linear
from .jagged_pool import jagged_pool as jagged_pool
from .jagged_pool.op import OP as _jagged_pool
from .jagged_softmax import jagged_softmax as jagged_softmax
from .jagged_softmax.op import OP as _jagged_softmax
from .layer_norm import layer_norm as layer_norm
from .layer_norm.op import OP as _layer_norm
from .registry import Impl as Impl
from .registry import Op as Op
from .rms_norm import rms_norm as rms_norm
from .rms_norm.op import OP as _rms_norm
from .rotary_time import rotary_angles as rotary_angles
from .rotary_time import rotary_time as rotary_time
from .rotary_time.op import OP as _rotary_time
from .seed_pooling import seed_pooling as seed_pooling
from .seed_pooling import seed_pooling_kvpacked as seed_pooling_kvpacked
from .seed_pooling.op import OP as _seed_pooling
from .seed_pooling_absorbed import seed_pooling_absorbed as seed_pooling_absorbed
from .seed_pooling_absorbed.op import OP as _seed_pooling_absorbed
from .sum_kron_linear import sum_kron_linear as sum_kron_linear
from .sum_kron_linear.op import OP as _sum_kron_linear
from .weighted_pool import weighted_pool as weighted_pool
from .weighted_pool.op import OP as _weighted_pool
from .window_attention import window_attention as window_attention
from .window_attention import window_attention_qkvpacked as window_attention_qkvpacked
from .window_attention.op import OP as _window_attention

OPS: Mapping[str, Op] = {
    op.name: op
    for op in (
        _gdpa,
        _gdpa_block,
        _window_attention,
        _hstu_attention,
        _cross_attention,
        _seed_pooling,
        _seed_pooling_absorbed,
        _sum_kron_linear,
        _rms_norm,
        _layer_norm,
        _rotary_time,
        _jagged_linear,
        _jagged_pool,
        _jagged_softmax,
        _jagged_gru,
        _weighted_pool,
        _hash_pool,
        _embedding,
    )
}
"""Every op by its name."""
