"""Writes one random GPT-2 124M in every format the benchmarked engines read.

All of them hold the same weights: seeded, N(0, 0.02) matrices and biases, LayerNorm gains near one.
`make_models(folder, tokenizer)` is idempotent: what already exists is left alone.
"""

import ctypes
import json
import shutil
from pathlib import Path

SEED = 124
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json")

# GGUF file -> (llama.cpp ftype, pure). "pure" gives the tied head 4 bits too; llama-quantize's default keeps it in Q6_K.
QUANTISED = {"q8_0": (7, False), "q4_0": (2, False), "q4_0-pure": (2, True)}


def make_models(folder: Path, tokenizer: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_hf(folder, tokenizer)
    for dtype in ("f32", "f16", "bf16"):
        _once(folder / f"{dtype}.gguf", lambda path, dtype=dtype: write_gguf(folder / "hf-f32", path, dtype))
    for name, (ftype, pure) in QUANTISED.items():
        _once(folder / f"{name}.gguf", lambda path, f=ftype, p=pure: quantise_gguf(folder / "f32.gguf", path, f, p))
    for compute_type in ("float32", "int8"):
        _once(folder / f"ct2-{compute_type}", lambda path, c=compute_type: convert_ct2(folder / "hf-f32", path, c))


def _once(path: Path, make) -> None:
    """Makes a file or folder under another name and renames it, so that a broken run leaves nothing half-made."""
    if path.exists():
        return
    print(f"making {path.name}", flush=True)
    part = path.with_name(path.name + ".part")
    if part.is_dir():
        shutil.rmtree(part)
    make(part)
    part.rename(path)


def make_hf(folder: Path, tokenizer: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    if (folder / "hf-f32").exists() and (folder / "hf-bf16").exists():
        return
    torch.manual_seed(SEED)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ln_" in name and name.endswith("weight"):
                parameter.normal_(1.0, 0.1)
            else:
                parameter.normal_(0.0, 0.02)
    model.tie_weights()

    def save(path: Path) -> None:
        model.save_pretrained(path)
        for file in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / file, path / file)

    _once(folder / "hf-f32", save)
    model.to(torch.bfloat16)
    _once(folder / "hf-bf16", save)


# ---- GGUF ----------------------------------------------------------------------------------------------------------

BLOCK_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
TOP_NAMES = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}


def gguf_name(hf_name: str) -> str:
    """transformer.h.3.attn.c_attn.bias -> blk.3.attn_qkv.bias"""
    stem, kind = hf_name.removeprefix("transformer.").rsplit(".", 1)
    if stem.startswith("h."):
        _, layer, module = stem.split(".", 2)
        return f"blk.{layer}.{BLOCK_NAMES[module]}.{kind}"
    return f"{TOP_NAMES[stem]}.{kind}"


def write_gguf(hf: Path, path: Path, dtype: str) -> None:
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((hf / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    file_types = gguf.LlamaFileType
    writer.add_file_type({"f32": file_types.ALL_F32, "f16": file_types.MOSTLY_F16, "bf16": file_types.MOSTLY_BF16}[dtype])

    ids = json.loads((hf / "vocab.json").read_text(encoding="utf-8"))
    tokens = sorted(ids, key=ids.__getitem__)
    special = ids["<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if i == special else gguf.TokenType.NORMAL for i in range(len(tokens))])
    merges = (hf / "merges.txt").read_text(encoding="utf-8").splitlines()
    writer.add_token_merges([line for line in merges if line and not line.startswith("#version")])
    writer.add_bos_token_id(special)
    writer.add_eos_token_id(special)

    for name, array in load_file(hf / "model.safetensors").items():
        if name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias")):
            continue  # the head is tied to wte; the others are the causal mask
        if ".c_" in name and name.endswith("weight"):
            array = array.T  # HF stores Conv1D as [in, out]
        array = np.ascontiguousarray(array, dtype=np.float32)
        out = gguf_name(name)
        if array.ndim == 1 or out == "position_embd.weight" or dtype == "f32":
            writer.add_tensor(out, array)
        elif dtype == "f16":
            writer.add_tensor(out, array.astype(np.float16))
        else:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(out, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise_gguf(source: Path, path: Path, ftype: int, pure: bool) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.pure = pure
    params.nthread = 2
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params))
    if code != 0:
        raise RuntimeError(f"llama_model_quantize({source.name} -> {path.name}) returned {code}")


def convert_ct2(hf: Path, path: Path, compute_type: str) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(hf)).convert(str(path), quantization=compute_type, force=True)
