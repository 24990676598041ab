"""Log-probabilities of small random GPT-2s, computed by Hugging Face transformers in f32.

    pip install torch transformers numpy
    python tests/golden/make_model_golden.py > tests/golden/model_logprobs.json

Weights are not committed: tests/model/random_gpt2.h makes the same ones from the same generator (splitmix64 in
the order of the tensors below, uniform in (-scale, scale)).
"""

import json

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

MASK = (1 << 64) - 1


class SplitMix:
    def __init__(self, seed):
        self.state = seed

    def uniforms(self, n, scale):
        steps = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = np.uint64(self.state) + steps
        self.state = (self.state + n * 0x9E3779B97F4A7C15) & MASK
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        unit = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return ((2.0 * unit - 1.0) * scale).astype(np.float32)

    def id(self, vocab):
        return int((self.uniforms(1, 1.0)[0].astype(np.float64) * 0.5 + 0.5) * (vocab - 1))


# The four GPT-2 sizes with their head counts and a head of 8, then what is odd.
CASES = [
    dict(name="gpt2", V=500, T=64, C=96, L=3, H=12),
    dict(name="gpt2-medium", V=500, T=64, C=128, L=3, H=16),
    dict(name="gpt2-large", V=257, T=64, C=160, L=2, H=20),
    dict(name="gpt2-xl", V=257, T=64, C=200, L=2, H=25),
    dict(name="one head of 64, gelu", V=65, T=128, C=64, L=2, H=1, activation="gelu"),
    dict(name="heads of 5, relu", V=33, T=70, C=15, L=2, H=3, activation="relu"),
    dict(name="nanoGPT: no biases, nn.Linear, exact gelu", V=96, T=70, C=48, L=2, H=4, activation="gelu", bias=False),
    dict(name="untied head, narrow mlp, epsilon", V=130, T=70, C=32, L=2, H=2, tied=False, inner=80, epsilon=1e-3),
]


def build(case):
    activation = case.get("activation", "gelu_new")
    config = GPT2Config(vocab_size=case["V"], n_positions=case["T"], n_embd=case["C"], n_layer=case["L"], n_head=case["H"],
                        n_inner=case.get("inner"), activation_function=activation, resid_pdrop=0, embd_pdrop=0,
                        attn_pdrop=0, layer_norm_epsilon=case.get("epsilon", 1e-5),
                        tie_word_embeddings=case.get("tied", True), bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval().float()
    random = SplitMix(CASES.index(case) + 1)
    bias = case.get("bias", True)

    def fill(tensor, scale, offset=0.0):
        values = random.uniforms(tensor.numel(), scale) + np.float32(offset)
        tensor.data.copy_(torch.from_numpy(values).view(tensor.shape))

    def norm(module):
        fill(module.weight, 0.3, 1.0)
        fill(module.bias, 0.2) if bias else module.bias.data.zero_()

    def matrix(module):
        fill(module.weight, 1.7 / np.sqrt(module.weight.shape[0]))
        fill(module.bias, 0.1) if bias else module.bias.data.zero_()

    t = model.transformer
    fill(t.wte.weight, 0.5)
    fill(t.wpe.weight, 0.3)
    for h in t.h:
        norm(h.ln_1), matrix(h.attn.c_attn), matrix(h.attn.c_proj)
        norm(h.ln_2), matrix(h.mlp.c_fc), matrix(h.mlp.c_proj)
    norm(t.ln_f)
    if not case.get("tied", True):
        fill(model.lm_head.weight, 0.5)
    return model, random


def main():
    golden = []
    for case in CASES:
        model, random = build(case)
        ids = [random.id(case["V"]) for _ in range(case["T"])]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0].double()
        logprobs = torch.log_softmax(logits, -1)
        scored = [float(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1)]
        golden.append({**case, "ids": ids, "logprobs": [float(f"{x:.8g}") for x in scored],
                       "last_logits": [float(f"{x:.8g}") for x in logits[-1, :8].tolist()]})
    print("[\n" + ",\n".join(json.dumps(case) for case in golden) + "\n]")


if __name__ == "__main__":
    main()
