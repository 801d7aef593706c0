"""stand-in until merged"""

from .rms_norm import rms_norm_ref
from .rope import rope_ref


def rope_store_ref(
    q, k, v, cos, sin, position, kv_index, k_cache, v_cache, q_norm=None, k_norm=None, eps=0.0
):
    D = q.shape[2]
    live = position >= 0
    if q_norm is not None:
        q.copy_(rms_norm_ref(q, q_norm, eps))
        k = rms_norm_ref(k, k_norm, eps)
    k = k.clone()
    p = position.clamp(min=0)
    rope_ref(q, k, cos, sin, p)
    size = k_cache.shape[2]
    index = kv_index[live]
    k_cache[index // size, :, index % size] = k[live]
    v_cache[index // size, :, index % size] = v[live]
