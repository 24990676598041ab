#!/usr/bin/env python3
"""Writes attention.txt: scaled dot-product attention and its gradients by PyTorch in float64, for tests/attention.

Run with PyTorch 2.x: python make_attention_golden.py > attention.txt. The file is text: per case a line
`name mask H Hkv D Tq Tk scale`, then q k v dout bias (0 or Tq·Tk numbers) out lse dq dk dv, each as a count and its
numbers, in (T, H, D) order; lse in (H, T) order.
"""
import math

import torch
from torch.nn.functional import scaled_dot_product_attention


def numbers(tensor):
    values = tensor.detach().flatten().tolist()
    print(len(values), *(f"{v:.9g}" for v in values))


def case(name, mask, heads, kv_heads, dim, tq, tk, scale=None):
    def draw(rows, h):
        return torch.randn(rows, h, dim).double().requires_grad_()

    q, k, v, dout = draw(tq, heads), draw(tk, kv_heads), draw(tk, kv_heads), draw(tq, heads)
    bias = torch.empty(0)
    allowed = None
    if mask == "causal_upper_left":
        allowed = torch.ones(tq, tk, dtype=torch.bool).tril()
    elif mask == "causal_lower_right":
        allowed = torch.ones(tq, tk, dtype=torch.bool).tril(tk - tq)
    elif mask == "additive_bias":
        bias = torch.randn(tq, tk)
        allowed = bias.double()
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
    print(name, mask, heads, kv_heads, dim, tq, tk, f"{used:.9g}")
    for tensor in (q, k, v, dout, bias, out, scores.logsumexp(-1), q.grad, k.grad, v.grad):
        numbers(tensor)


torch.manual_seed(2026)
case("square", "causal_upper_left", 2, 2, 8, 9, 9)
case("cache", "causal_lower_right", 2, 1, 16, 3, 11)
case("upper", "causal_upper_left", 1, 1, 8, 2, 10)
case("lower", "causal_lower_right", 1, 1, 8, 2, 10)
case("cross", "none", 2, 1, 8, 5, 70)
case("bias", "additive_bias", 2, 2, 8, 6, 7, scale=0.5)
