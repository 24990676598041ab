#!/usr/bin/env python3
"""Describe the sample model of weights/sample, which `inkling train` made: golden.json (what an engine must
reproduce, computed by transformers) and README.md (the model card, with the recipe).

    inkling train --data tinyshakespeare.txt --out-dir out …        # the command in weights/sample/README.md
    python weights/publish_sample.py --model out --text tinyshakespeare.txt --minutes 8 --out weights/sample

Copies config.json, model.safetensors and tokenizer.model, and measures what it copied. Wants the Python packages
torch, transformers and sentencepiece.
"""
import argparse
import hashlib
import json
import math
import shutil
from pathlib import Path
from string import Template

import sentencepiece
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel

SEED = 1337  # of the text that the card shows
PROMPT, GREEDY_TOKENS, GOLDEN_WINDOWS = "ROMEO:", 64, 16
FILES = ["model.safetensors", "tokenizer.model", "config.json"]


def next_token_loss(model, windows, reduction="mean"):
    """Cross-entropy in nats of tokens 1.. of each window; windows is (B,T)."""
    logits = model(input_ids=windows[:, :-1]).logits.float()
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def mean_loss(model, ids):
    """Nats per token over ids, cut into windows of the context; every token but the first is predicted once."""
    size = model.config.n_positions
    whole = (len(ids) - 1) // size * size
    chunks = [*ids[:whole + 1].unfold(0, size + 1, size).split(16), ids[whole:].unsqueeze(0)]
    return sum(next_token_loss(model, chunk, "sum").item() for chunk in chunks) / (len(ids) - 1)


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

- Architecture: Hugging Face `GPT2LMHeadModel`, V $vocab, context $context, C $width, L $layers, H $heads, exact GELU.
- Weights: bf16, Hugging Face names with `transformer.`, Conv1D layout [in,out]; the tied head is stored once, as `wte`.
- Vocabulary: SentencePiece BPE with byte fallback, no normalisation, no dummy prefix, newline a piece of its own.
  Decoding gives back the text, except U+2581, which becomes a space. unk 0 and eos 1 occur in no text.

| file | bytes | sha256 |
|---|---|---|
$files

## Recipe

    inkling train --data tinyshakespeare.txt --tokenizer weights/sample --n-layer $layers --n-head $heads --n-embd $width \\
      --bias --block-size $context --batch-size $batch_size --dropout $dropout --learning-rate $learning_rate --min-lr $min_lr \\
      --beta2 $beta2 --max-iters $max_iters --lr-decay-iters $lr_decay_iters --compute $compute --eval-interval $eval_interval \\
      --eval-iters $eval_iters --save-dtype bf16 --out-dir out
    python weights/publish_sample.py --model out --text tinyshakespeare.txt --minutes $minutes --out weights/sample

Data: Tiny Shakespeare (karpathy/char-rnn), 1,115,394 characters of plays, text in the public domain. The first 90 % of
the characters train ($train_tokens tokens, $epochs epochs), the rest validates ($val_tokens tokens).
$minutes minutes on two cores of an AMD EPYC with AVX-512-BF16; another instruction set gives other last bits. The
vocabulary was trained on the same 90 % by SentencePiece (`inkling tokenizer train` does the like). Step $best was kept;
validation loss over random windows by step: $curve.

## Losses

Windows of $context inputs, in order, each scored alone, no dropout; every token but the first is predicted once.
Bits per character compare over vocabularies. The validation loss chose the step: it is a little optimistic. Weights that
PyTorch had trained for 2000 steps, the sample before these, were at 3.96599.

| weights | train, nats/token | train, bits/char | validation, nats/token | validation, bits/char |
|---|---|---|---|---|
$rows

## What an engine must reproduce

`golden.json`, computed by transformers in f32 arithmetic from the stored bf16 weights: perplexity $perplexity over the
first $GOLDEN_WINDOWS windows of $context validation tokens, each scored alone from its first token, and `$PROMPT`
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
    prompt_ids, size = tokenizer.encode(PROMPT), model.config.n_positions
    greedy_ids, gaps = generate(model, prompt_ids, GREEDY_TOKENS)
    with torch.no_grad():
        nll = next_token_loss(model, val_ids[:GOLDEN_WINDOWS * size].view(GOLDEN_WINDOWS, size)).item()
    return {
        "prompt": PROMPT, "prompt_ids": prompt_ids, "greedy_ids": greedy_ids, "text": tokenizer.decode(greedy_ids),
        "top2_logit_gaps": gaps, "val_mean_nll": nll, "val_perplexity_f32_from_bf16_weights": math.exp(nll),
        "val_windows": GOLDEN_WINDOWS, "val_window_tokens": size, "val_first_character": cut,
        "val_first_ids": val_ids[:16].tolist(), "val_token_count": len(val_ids),
        "val_note": "the characters from val_first_character on, encoded by themselves; their first 16 windows of 256 "
                    "tokens, in order, each scored alone; exp of the mean over the 16*255 predicted tokens"}


def publish(folder, out, text, minutes):
    """Copies the model; golden.json and README.md are then measured on the copy."""
    for name in FILES:
        shutil.copyfile(folder / name, out / name)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    train_text, val_text = text[:int(0.9 * len(text))], text[int(0.9 * len(text)):]
    train_ids, val_ids = (torch.tensor(tokenizer.encode(part)) for part in (train_text, val_text))
    in_f32, in_bf16 = (GPT2LMHeadModel.from_pretrained(out, dtype=dtype, attn_implementation="eager").eval()
                       for dtype in (torch.float32, torch.bfloat16))
    golden = make_golden(in_f32, tokenizer, val_ids, len(train_text))
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in golden.items()]
    (out / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    rows, files = [], []
    for name, model in [("bf16, f32 arithmetic", in_f32), ("bf16, bf16 arithmetic", in_bf16)]:
        losses = [(mean_loss(model, ids), len(ids) / len(part) / math.log(2))
                  for ids, part in [(train_ids, train_text), (val_ids, val_text)]]
        rows.append(f"| {name} | " + " | ".join(f"{loss:.5f} | {loss * scale:.5f}" for loss, scale in losses) + " |")
    for name in [*FILES, "golden.json"]:
        files.append(f"| {name} | {len(data := (out / name).read_bytes()):,} | {hashlib.sha256(data).hexdigest()} |")
    settings = json.loads((folder / "train.json").read_text())
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()][1:]
    config = in_f32.config
    (out / "README.md").write_text(Template(CARD).substitute(
        {**globals(), **golden, **settings}, rows="\n".join(rows), files="\n".join(files), minutes=minutes,
        greedy_text=PROMPT + golden["text"], gap=min(golden["top2_logit_gaps"]),
        perplexity=f"{golden['val_perplexity_f32_from_bf16_weights']:.3f}",
        vocab=config.vocab_size, context=config.n_positions, width=config.n_embd, layers=config.n_layer,
        heads=config.n_head, parameters=f"{in_f32.num_parameters():,}",
        sample_text=PROMPT + tokenizer.decode(generate(in_f32, golden["prompt_ids"], 200, temperature=0.8)[0]),
        train_tokens=len(train_ids), val_tokens=len(val_ids),
        epochs=f"{settings['max_iters'] * settings['batch_size'] * settings['block_size'] / len(train_ids):.1f}",
        curve=", ".join(f"{entry['iter']}: {entry['val_loss']:.3f}" for entry in log),
        best=min(log, key=lambda entry: entry["val_loss"])["iter"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="what inkling train left")
    parser.add_argument("--text", type=Path, required=True, help="the corpus, UTF-8")
    parser.add_argument("--minutes", type=int, required=True, help="that the training took")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and what describes it")
    args = parser.parse_args()
    torch.set_num_threads(2)
    publish(args.model, args.out, args.text.read_bytes().decode("utf-8"), args.minutes)


if __name__ == "__main__":
    main()
