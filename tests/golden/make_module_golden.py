#!/usr/bin/env python3
"""Writes attention_module.txt: a causal self-attention module and its gradients by PyTorch in float64, for tests/attention.

Run with PyTorch 2.x: python make_module_golden.py > attention_module.txt. Per case a line `C H bias p seed offset B` and the
lengths, then x, c_attn.weight, c_proj.weight, c_attn.bias, c_proj.bias, dout, out, and the gradients of x and of the four
parameters, each as a count and its numbers. Weights are (inputs, outputs). With p > 0 both dropouts use masks drawn here by
a Philox of our own, as attention/sdpa.h and engine/ops.h state them.
"""
import math

import numpy
import torch


def philox(counter, seed):
    c, k0, k1 = list(counter), seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k1, a & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def mask(rows, columns, third, p, seed, offset):
    """1/(1-p) where kept, else 0."""
    p = float(numpy.float32(p))
    kept = [[philox((j // 4, i, third, offset), seed)[j % 4] >= int(p * 2**32) for j in range(columns)] for i in range(rows)]
    return torch.tensor(kept, dtype=torch.float64) / (1 - p)


def numbers(tensor):
    values = tensor.detach().flatten().tolist()
    print(len(values), *(f"{v:.9g}" for v in values))


def case(width, heads, bias, p, seed, offset, lengths):
    total, dim = sum(lengths), width // heads
    draw = lambda *shape: torch.randn(*shape).double().mul(0.5).float().double().requires_grad_()
    x, attn_w, proj_w, dout = draw(total, width), draw(width, 3 * width), draw(width, width), draw(total, width)
    attn_b, proj_b = (draw(3 * width), draw(width)) if bias else (torch.zeros(0).double(), torch.zeros(0).double())
    outs, begin = [], 0
    for b, length in enumerate(lengths):
        qkv = x[begin:begin + length] @ attn_w + (attn_b if bias else 0)
        q, k, v = (t.view(length, heads, dim).transpose(0, 1) for t in qkv.split(width, dim=1))
        scores = q @ k.transpose(1, 2) / math.sqrt(dim)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        if p > 0:
            weights = weights * torch.stack([mask(length, length, b * heads + h, p, seed, offset) for h in range(heads)])
        y = (weights @ v).transpose(0, 1).reshape(length, width) @ proj_w + (proj_b if bias else 0)
        outs.append(y * mask(length, width, 2**31 + b, p, seed, offset) if p > 0 else y)
        begin += length
    out = torch.cat(outs)
    out.backward(dout)
    print(width, heads, int(bias), p, seed, offset, len(lengths), *lengths)
    for t in (x, attn_w, proj_w, attn_b, proj_b, dout, out, x.grad, attn_w.grad, proj_w.grad):
        numbers(t)
    for t in (attn_b, proj_b):
        numbers(t.grad if bias else t)


torch.manual_seed(2026)
case(8, 2, False, 0, 0, 0, [5])
case(12, 3, True, 0, 0, 0, [1, 7, 4])
case(8, 2, True, 0.25, 0x123456789ABCDEF, 3, [6, 3])
