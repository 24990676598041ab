#!/usr/bin/env python3
"""Train the sample model of weights/sample: a 3 M parameter GPT-2 that writes Shakespearean dialogue.

    python weights/train_sample.py --text ../shared/data/text/tinyshakespeare.txt --out weights/sample

One run does it all: split the text, train a SentencePiece vocabulary on the training part, train the
model, keep the weights with the lowest validation loss, store them as bf16, read them back with
transformers and write golden.json (what an engine must reproduce) and README.md (the model card).

Wants the Python packages torch, transformers, sentencepiece, safetensors and numpy. CPU only; about
a quarter of an hour on two cores with AVX512-BF16.
"""
import argparse
import hashlib
import json
import math
import os
import time
from pathlib import Path
from string import Template

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads are four times slower on shared cores

import sentencepiece
import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

SEED = 1337
VOCAB, CONTEXT, WIDTH, LAYERS, HEADS = 2048, 256, 192, 6, 6
STEPS, BATCH, WARMUP, EVAL_EVERY = 2000, 8, 100, 250
LEARNING_RATE, FINAL_RATE, BETAS, WEIGHT_DECAY, CLIP = 1.5e-3, 1e-4, (0.9, 0.99), 0.1, 1.0
DROPOUT = 0.15  # embeddings and residual branches; none on attention weights, where it costs a third of the speed
CONFIG = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": VOCAB, "n_positions": CONTEXT,
    "n_ctx": CONTEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "resid_pdrop": DROPOUT, "embd_pdrop": DROPOUT,
    "attn_pdrop": 0.0, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": 1, "torch_dtype": "bfloat16"}
PROMPT, GREEDY_TOKENS, GOLDEN_WINDOWS = "ROMEO:", 64, 16
# U+2581 is not among them: SentencePiece writes spaces with it, so it decodes as a space.
ODD_STRINGS = ["", " ", "  a", "a  ", "\n", "\n\n \n", "\t\r\n", "</s>", "<unk>", "<0x41>", "日本 ü 😀", "e\u0301",
               "\u00a0\u3000", "\ufeffx", "\0", "ﬁ ½ Ⅷ", "ROMEO:\nO, she doth teach", "a" * 3000, " " * 300]


def train_tokenizer(text, path):
    """BPE with byte fallback and no normalisation: decode(encode(text)) == text."""
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text.split("\n")), model_writer=file, model_type="bpe", vocab_size=VOCAB,
            byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity",
            remove_extra_whitespaces=False, add_dummy_prefix=False, user_defined_symbols=["\n"],
            unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, num_threads=1, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def new_model():
    """In f32. "gelu_pytorch_tanh" is the function that "gelu_new" names, in one fused operation."""
    options = {**CONFIG, "activation_function": "gelu_pytorch_tanh", "torch_dtype": None, "use_cache": False}
    return GPT2LMHeadModel(GPT2Config(**options))


def learning_rate(step):
    if step < WARMUP:
        return LEARNING_RATE * (step + 1) / WARMUP
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return FINAL_RATE + (LEARNING_RATE - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def next_token_loss(model, windows, reduction="mean"):
    """Cross-entropy in nats of tokens 1.. of each window; windows is (B,T)."""
    logits = model(input_ids=windows[:, :-1]).logits.float()
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def mean_loss(model, ids):
    """Nats per token over ids, cut into windows of CONTEXT inputs; every token but the first is predicted once."""
    model.eval()
    whole = (len(ids) - 1) // CONTEXT * CONTEXT
    chunks = [*ids[:whole + 1].unfold(0, CONTEXT + 1, CONTEXT).split(16), ids[whole:].unsqueeze(0)]
    return sum(next_token_loss(model, chunk, "sum").item() for chunk in chunks) / (len(ids) - 1)


def train(ids, val_ids):
    """Returns the f32 state dict with the lowest validation loss and the log of the run."""
    torch.manual_seed(SEED)
    model = new_model()
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]  # biases, norms
    optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True)
    best, log, started = None, [], time.time()
    for step in range(STEPS):
        model.train()
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = learning_rate(step)
        starts = torch.randint(len(ids) - CONTEXT, (BATCH,))
        windows = torch.stack([ids[s:s + CONTEXT + 1] for s in starts])
        with torch.autocast("cpu", torch.bfloat16):
            loss = next_token_loss(model, windows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % EVAL_EVERY == 0:
            log.append({"step": step + 1, "val": mean_loss(model, val_ids)})
            print(f"step {step + 1}: val {log[-1]['val']:.4f}, {time.time() - started:.0f} s", flush=True)
            if log[-1]["val"] == min(entry["val"] for entry in log):
                best = {name: value.clone() for name, value in model.state_dict().items()}
    return best, {"log": log, "minutes": (time.time() - started) / 60}


def save_model(state, out):
    """config.json and model.safetensors as GPT2LMHeadModel reads them; the tied head is stored once, as wte."""
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in state.items() if name != "lm_head.weight"}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


@torch.no_grad()
def generate(model, prompt_ids, count, temperature=0.0, top_k=40):
    """New ids, greedy at temperature 0, and the lead of each top logit over its runner-up."""
    torch.manual_seed(SEED)
    ids, gaps = list(prompt_ids), []
    for _ in range(count):
        values, indices = model(input_ids=torch.tensor([ids])).logits[0, -1].topk(top_k)
        gaps.append(round((values[0] - values[1]).item(), 4))
        pick = torch.multinomial((values / temperature).softmax(0), 1).item() if temperature > 0 else 0
        ids.append(indices[pick].item())
    return ids[len(prompt_ids):], gaps


CARD = """# The sample model

A GPT-2 of $parameters parameters that writes dialogue in the manner of Shakespeare, small enough to live in the
repository: examples, tests and a first try need no download. Licence: MIT, as the rest of the project. Its limits:
speakers, line breaks and phrases are right, sense and plot are not; it knows one author's English and nothing else.

- Architecture: Hugging Face `GPT2LMHeadModel`, V $VOCAB, context $CONTEXT, C $WIDTH, L $LAYERS, H $HEADS, tanh GELU.
- Weights: bf16, Hugging Face names with `transformer.`, Conv1D layout [in,out]; the tied head is stored once, as `wte`.
- Vocabulary: SentencePiece BPE with byte fallback, no normalisation, no dummy prefix, newline a piece of its own.
  Decoding gives back the text, except U+2581, which becomes a space. unk 0 and eos 1 occur in no text.

| file | bytes | sha256 |
|---|---|---|
$files

## Recipe

    python weights/train_sample.py --text ../shared/data/text/tinyshakespeare.txt --out weights/sample

Data: Tiny Shakespeare (karpathy/char-rnn), 1,115,394 characters of plays, text in the public domain. The first 90 % of
the characters train vocabulary and weights ($train_tokens tokens), the rest validates ($val_tokens tokens).
AdamW, beta $BETAS, weight decay $WEIGHT_DECAY on matrices and embeddings, gradients clipped to norm $CLIP. $STEPS
steps of $BATCH random windows of $CONTEXT tokens ($epochs epochs). Learning rate up to $LEARNING_RATE in $WARMUP steps,
then a cosine down to $FINAL_RATE. Dropout $DROPOUT on embeddings and residual branches, none on attention weights.
bf16 autocast over f32 weights. Seed $SEED. $minutes minutes on two cores of an AMD EPYC shared with other work
($versions). Step $best was kept; validation loss by step: $curve.

## Losses

Windows of $CONTEXT inputs, in order, each scored alone, no dropout; every token but the first is predicted once.
Bits per character compare over vocabularies. The validation loss chose the step: it is a little optimistic.

| weights | train, nats/token | train, bits/char | validation, nats/token | validation, bits/char |
|---|---|---|---|---|
$rows

## What an engine must reproduce

`golden.json`, computed by transformers in f32 arithmetic from the stored bf16 weights: perplexity $perplexity over the
first $GOLDEN_WINDOWS windows of $CONTEXT validation tokens, each scored alone from its first token, and `$PROMPT`
($prompt_ids) continued greedily by $GREEDY_TOKENS tokens. No runner-up comes closer than $gap in logits.
```
$greedy_text
```

    $greedy_ids

## What it writes

Temperature 0.8, top-k 40, seed $SEED; the first draw, not picked among several:
```
$sample_text
```
"""


def make_golden(model, tokenizer, val_ids, cut):
    """What an engine must reproduce, computed in the arithmetic of model."""
    prompt_ids = tokenizer.encode(PROMPT)
    greedy_ids, gaps = generate(model, prompt_ids, GREEDY_TOKENS)
    with torch.no_grad():
        nll = next_token_loss(model, val_ids[:GOLDEN_WINDOWS * CONTEXT].view(GOLDEN_WINDOWS, CONTEXT)).item()
    return {
        "prompt": PROMPT, "prompt_ids": prompt_ids, "greedy_ids": greedy_ids, "text": tokenizer.decode(greedy_ids),
        "top2_logit_gaps": gaps, "val_mean_nll": nll, "val_perplexity_f32_from_bf16_weights": math.exp(nll),
        "val_windows": GOLDEN_WINDOWS, "val_window_tokens": CONTEXT, "val_first_character": cut,
        "val_first_ids": val_ids[:16].tolist(), "val_token_count": len(val_ids),
        "val_note": "the characters from val_first_character on, encoded by themselves; their first 16 windows of 256 "
                    "tokens, in order, each scored alone; exp of the mean over the 16*255 predicted tokens"}


def publish(out, state, run, tokenizer, train_text, val_text):
    """Stores the model; golden.json and README.md are then measured on what was stored."""
    train_ids, val_ids = (torch.tensor(tokenizer.encode(part)) for part in (train_text, val_text))
    save_model(state, out)
    stored = GPT2LMHeadModel.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    golden = make_golden(stored, tokenizer, val_ids, len(train_text))
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in golden.items()]
    (out / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    trained = new_model()
    trained.load_state_dict(state)
    in_bf16 = GPT2LMHeadModel.from_pretrained(out, dtype=torch.bfloat16)
    rows, files = [], []
    for name, model in [("f32", trained), ("bf16, f32 arithmetic", stored), ("bf16, bf16 arithmetic", in_bf16)]:
        losses = [(mean_loss(model, ids), len(ids) / len(part) / math.log(2))
                  for ids, part in [(train_ids, train_text), (val_ids, val_text)]]
        rows.append(f"| {name} | " + " | ".join(f"{loss:.5f} | {loss * scale:.5f}" for loss, scale in losses) + " |")
    for name in ["model.safetensors", "tokenizer.model", "config.json", "golden.json"]:
        files.append(f"| {name} | {len(data := (out / name).read_bytes()):,} | {hashlib.sha256(data).hexdigest()} |")
    (out / "README.md").write_text(Template(CARD).substitute(
        {**globals(), **golden}, rows="\n".join(rows), files="\n".join(files), greedy_text=PROMPT + golden["text"],
        gap=min(golden["top2_logit_gaps"]), perplexity=f"{golden['val_perplexity_f32_from_bf16_weights']:.3f}",
        parameters=f"{stored.num_parameters():,}",
        sample_text=PROMPT + tokenizer.decode(generate(stored, golden["prompt_ids"], 200, temperature=0.8)[0]),
        train_tokens=len(train_ids), val_tokens=len(val_ids), epochs=f"{STEPS * BATCH * CONTEXT / len(train_ids):.1f}",
        curve=", ".join(f"{entry['step']}: {entry['val']:.3f}" for entry in run["log"]),
        best=min(run["log"], key=lambda entry: entry["val"])["step"], minutes=f"{run['minutes']:.0f}",
        versions=", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, sentencepiece))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="the corpus, UTF-8")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and what describes it")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    text = args.text.read_bytes().decode("utf-8")
    train_text, val_text = text[:int(0.9 * len(text))], text[int(0.9 * len(text)):]
    tokenizer = train_tokenizer(train_text, args.out / "tokenizer.model")
    for case in [text, *ODD_STRINGS]:
        assert tokenizer.decode(tokenizer.encode(case)) == case, f"not the identity on {case[:40]!r}"
    state, run = train(*(torch.tensor(tokenizer.encode(part)) for part in (train_text, val_text)))
    publish(args.out, state, run, tokenizer, train_text, val_text)


if __name__ == "__main__":
    main()
