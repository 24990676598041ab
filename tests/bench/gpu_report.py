"""FOLDER/gpu.json and gpu.md from what tests/gpu.sh has measured there; prints the table."""
import json
import pathlib
import sys

folder = pathlib.Path(sys.argv[1])


def key(row):
    test = row["test"]  # "tg64 @ d512" and "tg @ d512" are one row
    return ("tg" + test[test.index(" "):] if test.startswith("tg") else test), row["batch"]


rows = {"bf16": json.loads((folder / "inkling.json").read_text()),
        "f32": json.loads((folder / "inkling_f32.json").read_text()),
        "torch": [json.loads(line) for line in (folder / "torch.jsonl").read_text().splitlines()]}
(folder / "gpu.json").write_text(json.dumps(rows, indent=1) + "\n")
torch = {key(row): row["tok_per_s"] for row in rows["torch"]}
f32 = {key(row): row["tok_per_s"]["median"] for row in rows["f32"]}
lines = ["| GPT-2 124M, tok/s | batch | bf16 | PyTorch bf16 | ratio | f32 |", "|---|--:|--:|--:|--:|--:|"]
for row in rows["bf16"]:
    name, ours = key(row), row["tok_per_s"]["median"]
    lines.append(f"| {name[0]} | {name[1]} | {ours:,.0f} | {torch[name]:,.0f} | {ours / torch[name]:.2f} | {f32[name]:,.0f} |")
(folder / "gpu.md").write_text("\n".join(lines) + "\n")
print("\n".join(lines))
