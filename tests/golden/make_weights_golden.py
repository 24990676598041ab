#!/usr/bin/env python3
"""Writes weights.safetensors with Python's own safetensors: the oracle of our reader and our writer.

Run with torch and safetensors installed; the output is committed. One tensor of each dtype that the engine knows,
one of rank 0, one of no elements. Element i of a tensor is i/2 - 1 (integers: i - 1, unsigned: i, bool: i odd).
"""
import pathlib

import torch
from safetensors.torch import save_file

FLOATS = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
INTEGERS = {"i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8}


def main() -> None:
    count = torch.arange(6).reshape(2, 3)
    tensors = {name: (count / 2 - 1).to(dtype) for name, dtype in FLOATS.items()}
    tensors |= {name: (count - 1).to(dtype) for name, dtype in INTEGERS.items()}
    tensors["u8"] = count.to(torch.uint8)
    tensors["bool"] = count % 2 == 1
    tensors["scalar"] = torch.tensor(-1.0)
    tensors["nothing"] = torch.zeros(0, 4)
    tensors["name \"quoted\", é"] = torch.tensor([-1.0])
    save_file(tensors, pathlib.Path(__file__).with_name("weights.safetensors"), metadata={"format": "pt"})


if __name__ == "__main__":
    main()
