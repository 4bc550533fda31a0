"""Gemma 3 in PyTorch, as far as training the tiny model needs it.

`check.py` compares it with transformers' Gemma3ForCausalLM.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Config:
    """The shape of the tiny model."""

    vocab: int = 256
    hidden: int = 96
    ffn: int = 192
    layers: int = 6
    query_heads: int = 4
    kv_heads: int = 1
    head_dim: int = 32
    window: int = 64
    pattern: int = 3
    global_theta: float = 1e6
    local_theta: float = 1e4
    eps: float = 1e-6
    max_positions: int = 4096

    def is_global(self, layer):
        """Whether a layer reads every token."""
        return (layer + 1) % self.pattern == 0

    def bf16_scale(self):
        """What embeddings are multiplied by, rounded to the type of the weights as transformers does."""
        return float(torch.tensor(self.hidden**0.5).to(torch.bfloat16))

    def huggingface(self):
        """config.json of the same shape."""
        kinds = ["full_attention" if self.is_global(i) else "sliding_attention" for i in range(self.layers)]
        return {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.query_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "query_pre_attn_scalar": self.head_dim,
            "sliding_window": self.window,
            "layer_types": kinds,
            "rope_theta": self.global_theta,
            "rope_local_base_freq": self.local_theta,
            "rope_scaling": None,
            "rms_norm_eps": self.eps,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": self.max_positions,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": True,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "torch_dtype": "bfloat16",
        }


class Norm(nn.Module):
    """x / rms(x) * (1 + weight)."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), 1.0 + self.weight, self.eps)


class Attention(nn.Module):
    """Grouped queries, norms on Q and K, rotation by halves."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        queries, kv = config.query_heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden, kv, bias=False)
        self.v_proj = nn.Linear(config.hidden, kv, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden, bias=False)
        self.q_norm = Norm(config.head_dim, config.eps)
        self.k_norm = Norm(config.head_dim, config.eps)

    def forward(self, x, cos, sin, mask, sink_rows):
        """Returns the output and, given `sink_rows` (batch, length), the sum over those rows and the heads of
        minus the log of the attention on the first token."""
        batch, length, _ = x.shape
        head_dim = self.config.head_dim

        def heads(projected):
            return projected.view(batch, length, -1, head_dim).transpose(1, 2)

        def rotated(t):
            first, second = t.chunk(2, -1)
            return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

        q = rotated(self.q_norm(heads(self.q_proj(x))))
        k = rotated(self.k_norm(heads(self.k_proj(x))))
        v = heads(self.v_proj(x))
        groups = self.config.query_heads // self.config.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        sink = None
        if sink_rows is not None:
            sink = x.new_zeros(())
            ones = torch.arange(length)
            for b in range(batch):
                rows = sink_rows[b].nonzero()[:, 0]
                if len(rows) == 0:
                    continue
                scores = q[b, :, rows] @ k[b].transpose(-1, -2) / math.sqrt(head_dim)
                scores = scores.masked_fill(ones[None, None, :] > rows[None, :, None], -torch.inf)
                sink = sink + (scores.logsumexp(-1) - scores[..., 0]).sum()
        if mask is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            out = windowed(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1)), sink


def windowed(q, k, v, mask):
    """Attention within a window, block by block: each block of queries reads its own keys and those before."""
    batch, heads, length, head_dim = q.shape
    window = mask.shape[0]
    padding = -length % window
    blocks = (length + padding) // window

    def cut(t):
        return F.pad(t, (0, 0, 0, padding)).view(batch * heads, blocks, window, head_dim)

    def with_before(t):
        t = cut(t)
        return torch.cat((F.pad(t, (0, 0, 0, 0, 1, 0))[:, :-1], t), 2)

    out = F.scaled_dot_product_attention(cut(q), with_before(k), with_before(v), attn_mask=mask_of(mask, blocks))
    return out.reshape(batch, heads, blocks * window, head_dim)[:, :, :length]


def mask_of(mask, blocks):
    """The mask of every block, `[blocks, window, 2 * window]`: the first has nothing before it."""
    masks = mask.repeat(blocks, 1, 1)
    masks[0, :, : mask.shape[0]] = False
    return masks


class Mlp(nn.Module):
    """Gated by GELU."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config):
        super().__init__()
        for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
            setattr(self, name, Norm(config.hidden, config.eps))
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)

    def forward(self, x, cos, sin, mask, sink_rows):
        attended, sink = self.self_attn(self.input_layernorm(x), cos, sin, mask, sink_rows)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))), sink


class Model(nn.Module):
    """The names of its parameters, with `model.` before them, are those of a checkpoint."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = Norm(config.hidden, config.eps)
        self.scale = config.bf16_scale()
        nn.init.normal_(self.embed_tokens.weight, std=config.hidden**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)

    def rotation(self, length, theta):
        """Cosines and sines, `[length, head_dim / 2]` each."""
        half = self.config.head_dim // 2
        inverse = theta ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * inverse
        return angles.cos().float(), angles.sin().float()

    def forward(self, tokens, sink_rows=None):
        """Logits `[batch, length, vocab]` and, with `sink_rows`, the mean of minus the log of the attention that
        global layers pay to the first token from those rows."""
        length = tokens.shape[1]
        window = self.config.window
        back = window + torch.arange(window)[:, None] - torch.arange(2 * window)[None, :]
        local = (back >= 0) & (back < window) if length > window else None
        turns = [self.rotation(length, theta) for theta in (self.config.local_theta, self.config.global_theta)]
        x = self.embed_tokens(tokens) * self.scale
        sinks, globals_ = x.new_zeros(()), 0
        for index, layer in enumerate(self.layers):
            is_global = self.config.is_global(index)
            mask = None if is_global else local
            x, sink = layer(x, *turns[is_global], mask, sink_rows if is_global else None)
            if sink is not None:
                sinks, globals_ = sinks + sink, globals_ + 1
        logits = self.norm(x) @ self.embed_tokens.weight.T
        if sink_rows is not None:
            sinks = sinks / max(1, int(sink_rows.sum()) * globals_ * self.config.query_heads)
        return logits, sinks
