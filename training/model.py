"""CodeGen in fused form, and the conversion of its weights to Hugging Face's names and layout.

CodeGen's block is parallel: one LayerNorm feeds attention and MLP, and both outputs are added to
the residual. So a block is two matrix products: `w_in` = [query | key | value | fc_in], H to 7H,
and `w_out` on concat(attention, gelu(fc_in)), 5H to H.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MP_NUM = 4  # qkv_proj of a CodeGen checkpoint is stored in so many groups of heads
LAYER_NORM_EPSILON = 1e-5
CHUNK = 256  # queries of causal_attention


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, in CodeGenConfig's words."""

    vocab_size: int = 8192
    n_embd: int = 256
    n_layer: int = 8
    n_head: int = 4
    rotary_dim: int = 32
    n_positions: int = 1024

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


def rotary_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each [n_positions, 1, rotary_dim / 2], base 10000 as in GPT-J."""
    rates = 10000.0 ** (-torch.arange(0, shape.rotary_dim, 2) / shape.rotary_dim)
    angles = torch.outer(torch.arange(shape.n_positions).float(), rates)
    return angles.cos()[:, None], angles.sin()[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs of the first dims of x [B, T, heads, head_dim], in x's dtype."""
    rotary_dim = 2 * cos.shape[-1]
    turned, rest = x.split((rotary_dim, x.shape[-1] - rotary_dim), dim=-1)
    even, odd = turned.unflatten(-1, (-1, 2)).float().unbind(-1)
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((pairs.flatten(-2).to(x.dtype), rest), dim=-1)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of [B, heads, T, head_dim], written out for torch.compile to fuse its softmax.

    On a CPU the backward of scaled_dot_product_attention takes as long as all the matrix products
    of the model together. Queries go in chunks, so that most of the masked half is never computed.
    """
    scale, parts = query.shape[-1] ** -0.5, []
    for first in range(0, query.shape[2], CHUNK):
        last = min(first + CHUNK, query.shape[2])
        scores = (query[:, :, first:last] @ key[:, :, :last].mT).float() * scale
        future = torch.arange(last) > torch.arange(first, last)[:, None]
        scores = scores.masked_fill(future, -1e9)
        parts.append(scores.softmax(-1).to(value.dtype) @ value[:, :, :last])
    return torch.cat(parts, dim=2)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.n_embd
        self.shape = shape
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.w_in = nn.Linear(width, 7 * width, bias=False)
        self.fc_in_bias = nn.Parameter(torch.zeros(4 * width))
        self.w_out = nn.Linear(5 * width, width)  # its bias is fc_out's; out_proj has none

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [B, T, n_embd] -> the same."""
        width, heads = self.shape.n_embd, self.shape.n_head
        query, key, value, hidden = self.w_in(self.norm(x)).split(
            (width, width, width, 4 * width), dim=-1
        )
        query = rotate(query.unflatten(-1, (heads, -1)), cos, sin).transpose(1, 2)
        key = rotate(key.unflatten(-1, (heads, -1)), cos, sin).transpose(1, 2)
        value = value.unflatten(-1, (heads, -1)).transpose(1, 2)
        attention = causal_attention(query, key, value)
        attention = attention.transpose(1, 2).flatten(2)
        hidden = F.gelu(hidden + self.fc_in_bias, approximate="tanh")
        return x + self.w_out(torch.cat((attention, hidden), dim=-1))


class CodeGen(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.norm = nn.LayerNorm(shape.n_embd, eps=LAYER_NORM_EPSILON)
        self.lm_head = nn.Linear(shape.n_embd, shape.vocab_size)
        cos, sin = rotary_tables(shape)
        # Not parameters and never cast: bfloat16 cannot tell positions apart beyond 256.
        self.tables = (cos, sin)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # GPT-2's rule: what adds to the residual stream starts smaller with the depth.
                depth = math.sqrt(2 * shape.n_layer) if "w_out" in name else 1.0
                nn.init.normal_(parameter, std=0.02 / depth)
        nn.init.zeros_(self.lm_head.bias)
        for block in self.blocks:
            nn.init.zeros_(block.w_out.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [B, T] -> logits [B, T, vocab_size], in the parameters' dtype."""
        cos, sin = (table[: ids.shape[1]] for table in self.tables)
        x = self.wte(ids)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.lm_head(self.norm(x))

    def loss(self, ids: Tensor, weights: Tensor | None = None) -> Tensor:
        """ids: [B, T + 1] -> mean cross-entropy (nats a token) of predicting ids[:, 1:].

        weights: [B, T + 1] or None; how much each token counts in the mean, where not all alike.
        """
        logits = self(ids[:, :-1])
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        if weights is None:
            return losses.mean()
        counted = weights[:, 1:].flatten()
        return (losses * counted).sum() / counted.sum()


def to_hugging_face(state: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Return `state` (a CodeGen.state_dict()) under transformers.CodeGenForCausalLM's names."""
    width = shape.n_embd
    out = {
        "transformer.wte.weight": state["wte.weight"],
        "transformer.ln_f.weight": state["norm.weight"],
        "transformer.ln_f.bias": state["norm.bias"],
        "lm_head.weight": state["lm_head.weight"],
        "lm_head.bias": state["lm_head.bias"],
    }
    for n in range(shape.n_layer):
        ours, theirs = f"blocks.{n}.", f"transformer.h.{n}."
        query, key, value, fc_in = state[ours + "w_in.weight"].split(
            (width, width, width, 4 * width)
        )
        # [3H, H] as groups of heads, each group's rows ordered query, value, key.
        groups = [part.unflatten(0, (MP_NUM, -1)) for part in (query, value, key)]
        out_proj, fc_out = state[ours + "w_out.weight"].split((width, 4 * width), dim=1)
        out |= {
            theirs + "ln_1.weight": state[ours + "norm.weight"],
            theirs + "ln_1.bias": state[ours + "norm.bias"],
            theirs + "attn.qkv_proj.weight": torch.cat(groups, dim=1).flatten(0, 1),
            theirs + "attn.out_proj.weight": out_proj,
            theirs + "mlp.fc_in.weight": fc_in,
            theirs + "mlp.fc_in.bias": state[ours + "fc_in_bias"],
            theirs + "mlp.fc_out.weight": fc_out,
            theirs + "mlp.fc_out.bias": state[ours + "w_out.bias"],
        }
    return {name: tensor.contiguous() for name, tensor in out.items()}


def from_hugging_face(tensors: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Return the CodeGen.state_dict() that `to_hugging_face` makes `tensors` of, in float32."""
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    out = {
        "wte.weight": tensors["transformer.wte.weight"],
        "norm.weight": tensors["transformer.ln_f.weight"],
        "norm.bias": tensors["transformer.ln_f.bias"],
        "lm_head.weight": tensors["lm_head.weight"],
        "lm_head.bias": tensors["lm_head.bias"],
    }
    for n in range(shape.n_layer):
        ours, theirs = f"blocks.{n}.", f"transformer.h.{n}."
        groups = tensors[theirs + "attn.qkv_proj.weight"].unflatten(0, (MP_NUM, 3, -1))
        query, value, key = (groups[:, part].flatten(0, 1) for part in range(3))
        projections = [
            tensors[theirs + name] for name in ("attn.out_proj.weight", "mlp.fc_out.weight")
        ]
        out |= {
            ours + "norm.weight": tensors[theirs + "ln_1.weight"],
            ours + "norm.bias": tensors[theirs + "ln_1.bias"],
            ours + "w_in.weight": torch.cat(
                (query, key, value, tensors[theirs + "mlp.fc_in.weight"])
            ),
            ours + "fc_in_bias": tensors[theirs + "mlp.fc_in.bias"],
            ours + "w_out.weight": torch.cat(projections, dim=1),
            ours + "w_out.bias": tensors[theirs + "mlp.fc_out.bias"],
        }
    return out
