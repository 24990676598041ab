#!/usr/bin/env python3
"""Writes attention.txt: scaled dot-product attention and its gradients by PyTorch in float64, for tests/attention.

Run with PyTorch 2.x: python make_attention_golden.py > attention.txt. The file is text (84 KB): per case a line
`name mask dtype H Hkv D Tq Tk scale left right` (a window, −1 where it has no end), then q k v dout, bias (0 or Tq·Tk
numbers: what is added, or whether it is seen), documents of the queries and of the keys, out lse dq dk dv dbias, each as
a count and its numbers, in (T, H, D) order; lse in (H, T) order. Inputs are exact in `dtype`; results are those of
float64 from these inputs.
"""
import math

import torch
from torch.nn.functional import scaled_dot_product_attention

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def numbers(tensor, form):
    values = tensor.detach().flatten().tolist()
    print(len(values), *(format(v, form) for v in values))


def case(name, mask, heads, kv_heads, dim, tq, tk, scale=None, dtype="f32", left=-1, right=-1):
    def draw(rows, h):
        return torch.randn(rows, h, dim).to(DTYPES[dtype]).double().requires_grad_()

    q, k, v, dout = draw(tq, heads), draw(tk, kv_heads), draw(tk, kv_heads), draw(tq, heads)
    bias = document_q = document_k = torch.empty(0)
    allowed = None
    distance = torch.arange(tk) - torch.arange(tq)[:, None] - (tk - tq)  # j − p
    window = (distance >= (-left if left >= 0 else -tk)) & (distance <= (right if right >= 0 else tk))
    if mask == "causal_upper_left":
        allowed = torch.ones(tq, tk, dtype=torch.bool).tril()
    elif mask == "causal_lower_right":
        allowed = torch.ones(tq, tk, dtype=torch.bool).tril(tk - tq)
    elif mask == "sliding_window":
        allowed = window
    elif mask == "document":
        document_k = torch.arange(tk) // 3 % 2  # the first comes back
        document_q = document_k[tk - tq:]
        allowed = window & (document_q[:, None] == document_k)
    elif mask == "additive_bias":
        bias = torch.randn(tq, tk).requires_grad_()
        allowed = bias.double()
    elif mask == "boolean":
        bias = torch.rand(tq, tk) < 0.6
        bias[:, 0] = True  # a row that sees nothing has no softmax
        allowed = bias
    group = heads // kv_heads
    wide_k, wide_v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    out = scaled_dot_product_attention(
        q.transpose(0, 1), wide_k.transpose(0, 1), wide_v.transpose(0, 1), attn_mask=allowed, scale=scale
    ).transpose(0, 1)
    out.backward(dout)
    used = scale if scale is not None else 1 / math.sqrt(dim)
    scores = torch.einsum("qhd,khd->hqk", q, wide_k) * used
    if mask == "additive_bias":
        scores = scores + allowed
    elif allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    print(name, mask, dtype, heads, kv_heads, dim, tq, tk, f"{used:.9g}", left, right)
    for tensor in (q, k, v, dout, bias):
        numbers(tensor, ".9g")
    for tensor in (document_q, document_k):
        numbers(tensor, "g")
    dbias = bias.grad if mask == "additive_bias" else torch.empty(0)
    for tensor in (out, scores.logsumexp(-1), q.grad, k.grad, v.grad, dbias):
        numbers(tensor, ".7g")


torch.manual_seed(2026)
case("square", "causal_upper_left", 2, 2, 8, 9, 9)
case("cache", "causal_lower_right", 2, 1, 16, 3, 11)
case("upper", "causal_upper_left", 1, 1, 8, 2, 10)
case("lower", "causal_lower_right", 1, 1, 8, 2, 10)
case("cross", "none", 2, 1, 4, 5, 70)
case("bias", "additive_bias", 2, 2, 8, 6, 7, scale=0.5)
case("window", "sliding_window", 2, 1, 4, 6, 9, left=2, right=1)
case("documents", "document", 2, 1, 4, 8, 10, right=0)
case("boolean", "boolean", 2, 2, 4, 5, 7)
case("bf16", "causal_lower_right", 2, 1, 8, 4, 7, dtype="bf16")
case("f16", "additive_bias", 2, 1, 8, 4, 7, dtype="f16")
