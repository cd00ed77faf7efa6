"""CodeGen's forward pass in plain numpy: what every exported graph is checked against.

It reads one layer at a time and knows nothing of caches, fused kernels or devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import Array, Block, FusedWeights, rotary_tables


def forward(weights: FusedWeights, token_ids: Sequence[int]) -> Array:
    """Return the logits [T, vocab_size] float32 of T tokens from the beginning of a context."""
    config = weights.config
    cos, sin = (table[: len(token_ids)] for table in rotary_tables(config))
    hidden = weights.wte()[np.asarray(token_ids)]  # [T, H]
    for layer in range(config.n_layer):
        # No name keeps a layer's weights while the next one's are read.
        hidden, _, _ = run_layer(config, weights.block(layer), hidden, cos, sin)
    hidden = _layer_norm(hidden, *weights.ln_f(), config.layer_norm_epsilon)
    weight, bias = weights.lm_head()
    return np.asarray(hidden @ weight + bias, np.float32)


def run_layer(
    config: CodeGenConfig, block: Block, hidden: Array, cos: Array, sin: Array
) -> tuple[Array, Array, Array]:
    """Run T tokens from the beginning of a context through a layer.

    Args:
        config: the model's sizes.
        block: the layer's weights.
        hidden: [T, H] float32, what the layer before has left; of the first, the embedding.
        cos: [T, rotary_dim / 2] float32, of the tokens' positions; as `rotary_tables` has them.
        sin: the same.

    Returns:
        hidden [T, H] behind the layer; its keys, as attention sees them, and its values, both
        [n_head, T, head_dim]. All float32.
    """
    normed = _layer_norm(hidden, block.ln_weight, block.ln_bias, config.layer_norm_epsilon)
    q, k, v, inner = np.split(normed @ block.w_in, config.n_embd * np.arange(1, 4), axis=1)
    query, key, value = (x.reshape(len(x), config.n_head, -1).swapaxes(0, 1) for x in (q, k, v))
    query, key = (_rotate(x, cos, sin) for x in (query, key))
    return hidden + _project(_attention(query, key, value), inner, block), key, value


def _attention(query: Array, key: Array, value: Array) -> Array:
    """Causal attention over [heads, T, head_dim]; the result is [T, H]."""
    scores = query @ key.swapaxes(1, 2) / np.sqrt(np.float32(query.shape[-1]))
    scores = np.where(np.tri(query.shape[1], dtype=bool), scores, -np.inf)
    exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=-1, keepdims=True)
    mixed = probabilities @ value
    return np.asarray(mixed.swapaxes(0, 1).reshape(query.shape[1], -1), np.float32)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn the pairs (0, 1), (2, 3), ... of [heads, T, head_dim] by each position's angles."""
    width = 2 * cos.shape[1]
    even, odd = x[..., 0:width:2], x[..., 1:width:2]
    turned = x.copy()
    turned[..., 0:width:2] = even * cos - odd * sin
    turned[..., 1:width:2] = odd * cos + even * sin
    return turned


def _project(attention: Array, inner: Array, block: Block) -> Array:
    inner = inner + block.b_in
    # "gelu_new" (https://arxiv.org/abs/1606.08415, the tanh form)
    cubic = np.float32(np.sqrt(2 / np.pi)) * (inner + np.float32(0.044715) * inner**3)
    inner = np.float32(0.5) * inner * (1 + np.tanh(cubic))
    mixed = np.concatenate([attention, inner], axis=1)
    return np.asarray(mixed @ block.w_out + block.b_out, np.float32)


def _layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt(variance + np.float32(epsilon))
    return np.asarray(normed * weight + bias, np.float32)
