#!/usr/bin/env python3
"""Expected logits of the preset gemma3-tiny with weights by hash, computed apart from the engine.

Needs numpy (2.x) alone. Writes tiny.safetensors beside itself: `tokens`, `positions`, and
`logits` [positions, vocab], computed in f64 and rounded to f32. Prints the numbers that the
tests of engine/src/synthetic.rs pin.

Source of the forward pass: transformers 5.17, modeling_gemma3.py.
"""

import json
import struct
from pathlib import Path

import numpy as np

SEED = 7
VOCAB, HIDDEN, LAYERS, QUERY_HEADS, KV_HEADS, HEAD, FFN = 512, 64, 7, 4, 2, 32, 160
WINDOW, QUERY_SCALAR, EPS = 16, 24.0, 1e-6
LOCAL_ROPE, GLOBAL_ROPE = (10_000.0, 1.0), (1_000_000.0, 8.0)
POSITIONS = [0, 1, 15, 16, 17, 30, 47]


def hashes(seed, index):
    """SplitMix64's output function of a counter, for an array of indices."""
    with np.errstate(over="ignore"):
        index = np.asarray(index, dtype=np.uint64) + np.uint64(1)
        mixed = np.uint64(seed) + index * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def unit(key, count):
    """Evenly spread numbers with mean 0 and variance 1, every operation in f32."""
    bits = (hashes(key, np.arange(count)) >> np.uint64(40)).astype(np.float32)
    return (bits / np.float32(8388608.0) - np.float32(1.0)) * np.float32(1.7320508)


class Weights:
    """Tensors in the order that they are counted in."""

    def __init__(self):
        self.tensor = 0

    def key(self):
        self.tensor += 1
        return hashes(SEED, self.tensor)

    def matrix(self, rows, cols):
        scale = np.float32(1.0) / np.sqrt(np.float32(cols))
        return (unit(self.key(), rows * cols) * scale).reshape(rows, cols)

    def norm(self, size):
        return np.float32(1.0) + np.float32(0.3) * unit(self.key(), size)


def layer(make):
    sizes = {"input": HIDDEN, "post_attention": HIDDEN, "pre_ffn": HIDDEN, "post_ffn": HIDDEN, "q_norm": HEAD, "k_norm": HEAD}
    tensors = {name: make.norm(size) for name, size in sizes.items()}
    query, kv = QUERY_HEADS * HEAD, KV_HEADS * HEAD
    shapes = {"q": (query, HIDDEN), "k": (kv, HIDDEN), "v": (kv, HIDDEN), "o": (HIDDEN, query)}
    shapes |= {"gate": (FFN, HIDDEN), "up": (FFN, HIDDEN), "down": (HIDDEN, FFN)}
    return tensors | {name: make.matrix(*shape) for name, shape in shapes.items()}


def rms(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight.astype(np.float64)


def rotate(x, theta, factor):
    """x: [tokens, heads, HEAD]; pairs are (i, i + HEAD / 2)."""
    frequencies = theta ** (-np.arange(0, HEAD, 2) / HEAD) / factor
    angles = np.arange(len(x))[:, None] * frequencies
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., : HEAD // 2], x[..., HEAD // 2 :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def gelu(x):
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def attention(x, tensors, is_global):
    tokens = len(x)
    wide = {name: tensors[name].astype(np.float64) for name in "qkvo"}
    q = rms((x @ wide["q"].T).reshape(tokens, QUERY_HEADS, HEAD), tensors["q_norm"])
    k = rms((x @ wide["k"].T).reshape(tokens, KV_HEADS, HEAD), tensors["k_norm"])
    v = (x @ wide["v"].T).reshape(tokens, KV_HEADS, HEAD)
    rope = GLOBAL_ROPE if is_global else LOCAL_ROPE
    q, k = rotate(q, *rope), rotate(k, *rope)
    shared = QUERY_HEADS // KV_HEADS
    k, v = np.repeat(k, shared, 1), np.repeat(v, shared, 1)
    scores = np.einsum("qhd,khd->hqk", q, k) * QUERY_SCALAR**-0.5
    distance = np.arange(tokens)[:, None] - np.arange(tokens)[None]
    seen = (distance >= 0) & (is_global | (distance < WINDOW))
    scores = np.where(seen, scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", shares, v).reshape(tokens, -1) @ wide["o"].T


def mlp(x, tensors):
    wide = {name: tensors[name].astype(np.float64) for name in ("gate", "up", "down")}
    return (gelu(x @ wide["gate"].T) * (x @ wide["up"].T)) @ wide["down"].T


def main():
    make = Weights()
    embedding = make.matrix(VOCAB, HIDDEN)
    layers = [layer(make) for _ in range(LAYERS)]
    norm = make.norm(HIDDEN)

    tokens = (hashes(SEED, np.arange(1_000_000, 1_000_048)) % np.uint64(VOCAB)).astype(np.int64)
    wide = embedding.astype(np.float64)
    x = wide[tokens] * np.sqrt(HIDDEN)
    for number, tensors in enumerate(layers):
        is_global = (number + 1) % 6 == 0
        x = x + rms(attention(rms(x, tensors["input"]), tensors, is_global), tensors["post_attention"])
        x = x + rms(mlp(rms(x, tensors["pre_ffn"]), tensors), tensors["post_ffn"])
    logits = (rms(x, norm) @ wide.T)[POSITIONS]

    arrays = {
        "tokens": ("U32", tokens.astype("<u4")),
        "positions": ("U32", np.array(POSITIONS, "<u4")),
        "logits": ("F32", logits.astype("<f4")),
    }
    header, at = {}, 0
    for name, (kind, array) in arrays.items():
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    data = b"".join(array.tobytes() for _, array in arrays.values())
    Path(__file__).with_name("tiny.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)

    bits = lambda array: [hex(int(bits)) for bits in array.reshape(-1)[[0, -1]].view(np.uint32)]
    print("hash(7, 0)        ", hex(int(hashes(7, 0))))
    print("hash(7, 1_000_000)", hex(int(hashes(7, 1_000_000))))
    print("embedding         ", bits(embedding))
    print("layer 6, down     ", bits(layers[6]["down"]))
    print("last norm         ", bits(norm))
    print("logits            ", logits.std(), np.abs(logits).max())


if __name__ == "__main__":
    main()
