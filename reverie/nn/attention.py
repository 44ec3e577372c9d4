"""Attention over a whole clip or over a KV cache, and rotary positions (RoPE).

Shapes: B batch, Q queries, S keys, K heads, G key/value heads (K % G == 0), D head width.
"""

import sys
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from reverie.nn.target import target


def attend(
    q_BQKD: Float[Array, "b q k d"],
    k_BSGD: Float[Array, "b s g d"],
    v_BSGD: Float[Array, "b s g d"],
    *,
    mask_QS: Bool[Array, "q s"] | Bool[Array, "b q s"] | None = None,
    causal: bool = False,
    window: int | None = None,
    soft_cap: float = 0.0,
    parts: int = 1,
) -> Float[Array, "b q k d"]:
    """Softmax attention with grouped heads; logits and softmax in float32.

    ``causal``: query i reads keys max(0, i - window + 1)..i. ``mask_QS``: the attention mask, True where query q reads
    key s, the same for all rows or (B, Q, S).
    ``soft_cap`` > 0 squashes logits to cap * tanh(logits / cap) (Gemma 2, arXiv 2408.00118, section 2).
    ``parts``: in how many parts the rows are computed, one after the other; the logits of one exist at a time.

    On NVIDIA GPUs cuDNN's flash attention is used where it has a kernel (``why_no_flash``). It has none for capped
    logits, so that case is written out here.
    """
    if parts > 1:
        how: Any = {"causal": causal, "window": window, "soft_cap": soft_cap}
        return _in_parts(parts, q_BQKD, k_BSGD, v_BSGD, mask_QS, how)
    flash = False
    if (machine := target()).platform == "gpu":
        reason = why_no_flash(q_BQKD, k_BSGD, mask_QS is not None, soft_cap, machine.capability)
        flash = not reason
        _warn(reason)
    if soft_cap:
        return _capped(q_BQKD, k_BSGD, v_BSGD, _combine(mask_QS, causal, window, q_BQKD.shape[1]), soft_cap)
    band = (window - 1, 0) if causal and window is not None and window < q_BQKD.shape[1] else None
    return jax.nn.dot_product_attention(
        q_BQKD,
        k_BSGD,
        v_BSGD,
        mask=None if mask_QS is None else mask_QS.reshape(-1, 1, *mask_QS.shape[-2:]),
        is_causal=causal,
        local_window_size=band,
        implementation="cudnn" if flash else "xla",
    )


def _in_parts(parts: int, q: Array, k: Array, v: Array, mask: Array | None, how: dict[str, Any]) -> Array:
    """``attend`` to every ``parts``-th row at a time, so that on a mesh each device works on rows that it holds."""

    def cut(rows: Array) -> Array:
        return jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0)

    rows = (q, k, v) if mask is None or mask.ndim == 2 else (q, k, v, mask)

    @jax.checkpoint  # else the backward pass would keep the logits of all parts
    def one(rows: tuple[Array, ...]) -> Array:
        return attend(*rows[:3], mask_QS=rows[3] if len(rows) == 4 else mask, **how)

    out = jax.lax.map(one, tuple(map(cut, rows)))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape)


def why_no_flash(q_BQKD: Any, k_BSGD: Any, masked: bool, soft_cap: float, capability: float) -> str:
    """Return why cuDNN has no flash kernel for this attention, "" if it has one.

    ``q_BQKD``, ``k_BSGD``: anything with ``shape`` and ``dtype``. ``capability``: the GPU's, such as 8.0 for an A100.
    The rules are those of jax 0.10 (``check_is_flash_attention``), which raises where they are broken.
    """
    (_, queries, _, width), keys, most = q_BQKD.shape, k_BSGD.shape[1], 256 if capability >= 9 else 128
    if capability < 8:
        return f"the GPU's compute capability is {capability}, below 8.0"
    if soft_cap:
        return "logits are capped (soft_cap)"
    if q_BQKD.dtype not in (jnp.bfloat16, jnp.float16):
        return f"the type is {q_BQKD.dtype}, not a 16-bit one"
    if width % 8 or width > most:
        return f"heads are {width} wide, not a multiple of 8 up to {most}"
    if masked and (queries % 2 or keys % 2):
        return f"a mask is over {queries} queries and {keys} keys, not even numbers"
    return ""


@cache  # once for each reason
def _warn(reason: str) -> None:
    if reason:
        print(f"Attention without cuDNN's flash kernel, slower and with more memory: {reason}.", file=sys.stderr)


def cached_attention(
    q_BNKD: Array, own: tuple[Array, Array], cached: tuple[Array, Array], valid_S: Array, soft_cap: float = 0.0
) -> Array:
    """Attention of one query per token over cached frames and its own: (B, N, K, D), as ``attend`` would give.

    ``own``: the token's key and value (B, N, G, D). ``cached``: keys and values (B, N, G, S, D) of the KV cache, of
    which the slots are read where ``valid_S`` is True.
    """
    q = rearrange(q_BNKD, "b n (g r) d -> b n g r d", g=own[0].shape[2])
    keys, values = cached
    cached_logits = jnp.einsum("bngrd,bngsd->bngrs", q, keys, preferred_element_type=jnp.float32)
    own_logits = jnp.einsum("bngrd,bngd->bngr", q, own[0], preferred_element_type=jnp.float32)
    logits = jnp.concatenate([cached_logits, own_logits[..., None]], axis=-1) * np.float32(q.shape[-1] ** -0.5)
    if soft_cap:
        logits = np.float32(soft_cap) * jnp.tanh(logits / np.float32(soft_cap))
    mask = jnp.append(valid_S, True)
    weights = jax.nn.softmax(jnp.where(mask[None, None, None, None], logits, np.float32(-1e30)), axis=-1)
    weights = weights.astype(values.dtype)
    out = jnp.einsum("bngrs,bngsd->bngrd", weights[..., :-1], values) + weights[..., -1:] * own[1][:, :, :, None]
    return rearrange(out, "b n g r d -> b n (g r) d")


def rotary_time(positions: Array | np.ndarray, width: int, base: float = 1e4) -> tuple[Array, Array]:
    """Return (cos, sin), each (T, width // 2), for (T,) integer frame positions (RoFormer, arXiv 2104.09864).

    Angles are fractions of a turn in uint32, where overflow *is* the modulo. So phases are exact at every position,
    and a session may last for ever. (In float32, frame 100,000 is already off by 6e-3 radians.)
    """
    turns = base ** (-np.arange(width // 2) / (width // 2)) / (2 * np.pi)
    step = jnp.asarray(np.round(turns * 2.0**32).astype(np.uint32))
    phase = jnp.asarray(positions).astype(jnp.uint32)[:, None] * step[None]
    angle = phase.astype(jnp.float32) * np.float32(2 * np.pi / 2.0**32)
    return jnp.cos(angle), jnp.sin(angle)


def rotary_space(height: int, width: int, extra: int, head: int, base: float = 100.0) -> tuple[np.ndarray, np.ndarray]:
    """Return (cos, sin), each (height * width + extra, head // 2): row angles first, then column.

    ``extra`` tokens without a position in the image come last and are not rotated.
    """
    quarter = head // 4
    freqs = base ** (-np.arange(quarter) / max(quarter, 1))
    row, col = np.divmod(np.arange(height * width), width)
    rest = head // 2 - 2 * quarter
    angle = np.concatenate([row[:, None] * freqs, col[:, None] * freqs, np.zeros((height * width, rest))], axis=1)
    angle = np.concatenate([angle, np.zeros((extra, head // 2))]).astype(np.float32)
    return np.cos(angle), np.sin(angle)


def rotate(x_ND: Array, cos: Array, sin: Array) -> Array:
    """Rotate pairs (x[..., i], x[..., i + D/2]) of ``x`` (..., N, K, D) by tables (..., N, D/2), in float32."""
    a, b = jnp.split(x_ND.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    shape = (1,) * (a.ndim - cos.ndim) + cos.shape
    cos, sin = jnp.reshape(cos, shape), jnp.reshape(sin, shape)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_ND.dtype)


def _combine(mask_QS, causal: bool, window: int | None, length: int):
    if not causal:
        return mask_QS
    age = np.arange(length)[:, None] - np.arange(length)[None]
    band = jnp.asarray((age >= 0) & (age < (window or length)))
    return band if mask_QS is None else jnp.broadcast_to(band, mask_QS.shape) & mask_QS


def _capped(q, k, v, mask_QS, cap: float):
    groups = q.shape[2] // k.shape[2]
    q = q.reshape(*q.shape[:2], k.shape[2], groups, q.shape[3])
    logits = jnp.einsum("bqgrd,bsgd->bgrqs", q, k, preferred_element_type=jnp.float32) * np.float32(q.shape[-1] ** -0.5)
    logits = np.float32(cap) * jnp.tanh(logits / np.float32(cap))
    if mask_QS is not None:
        logits = jnp.where(mask_QS.reshape(-1, 1, 1, *mask_QS.shape[-2:]), logits, np.float32(-1e30))
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bgrqs,bsgd->bqgrd", weights, v)
    return out.reshape(*out.shape[:2], -1, out.shape[-1])
