#!/usr/bin/env python3
"""Writes training_ops.txt: gradients, loss and AdamW by PyTorch in float64, for tests/engine/training_golden.cpp.

Run with PyTorch 2.x: python make_training_golden.py > training_ops.txt. Every line is a count and its numbers:
  layer norm (3 × 10): x weight bias dout dx dweight dbias;
  activations: x, then y'(x) of GELU (tanh), GELU (erf), ReLU;
  cross entropy (4 × 11): logits, targets (−1: ignored), losses, gradient of 0.25 · Σ losses;
  AdamW (33): parameter, five gradients, parameter after five steps (0.01, betas 0.9 0.95, 1e-8, decay 0.1), m, v.
"""
import torch
from torch.nn import functional

torch.manual_seed(4)
torch.set_default_dtype(torch.float64)


def numbers(tensor):
    values = tensor.detach().flatten().tolist()
    print(len(values), *(f"{v:.9g}" for v in values))


def draw(*shape, scale=1.0):
    return (torch.randn(*shape) * scale).float().double()  # what f32 holds


def layer_norm():
    x, weight, bias = (draw(*s).requires_grad_() for s in ((3, 10), (10,), (10,)))
    dout = draw(3, 10)
    functional.layer_norm(x, (10,), weight, bias).backward(dout)
    for tensor in (x, weight, bias, dout, x.grad, weight.grad, bias.grad):
        numbers(tensor)


def activations():
    x = torch.cat([torch.linspace(-6, 6, 41), torch.tensor([-1e4, -40.0, 40.0, 1e4])]).float().double()
    numbers(x)
    for act in (lambda v: functional.gelu(v, approximate="tanh"), functional.gelu, functional.relu):
        point = x.clone().requires_grad_()
        act(point).sum().backward()
        numbers(point.grad)


def cross_entropy():
    logits = draw(4, 11, scale=3.0).requires_grad_()
    targets = torch.tensor([10, -1, 0, 4])
    losses = functional.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
    (0.25 * losses.sum()).backward()
    for tensor in (logits, targets, losses, logits.grad):
        numbers(tensor)


def adamw():
    parameter = draw(33).requires_grad_()
    numbers(parameter)
    optimiser = torch.optim.AdamW([parameter], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        parameter.grad = draw(33)
        numbers(parameter.grad)
        optimiser.step()
    state = optimiser.state[parameter]
    for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"]):
        numbers(tensor)


layer_norm()
activations()
cross_entropy()
adamw()
