#!/usr/bin/env bash
# Everything that wants a GPU, in one command: builds what is missing, runs the tests of the GPU, compute-sanitizer on
# small shapes, then the benchmark, beside PyTorch where it is installed.
#   tests/gpu.sh [--binaries FOLDER] [--out FOLDER]
# FOLDER of binaries: inkling, test_engine, test_attention, test_model, test_attention_cuda, and lib/ with shared libraries
# that the machine lacks, for machines without compiler or packages. Writes {gpu,sdpa,train}.{json,md} to FOLDER [build/gpu].
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
binaries="" out="$top/build/gpu"
while (($# > 0)); do
  case $1 in
    --binaries) binaries=$2 ;;
    --out) out=$2 ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
export PATH=$PATH:/usr/local/cuda/bin
begin=$SECONDS
stage() { printf '\n=== %s (at %d s)\n' "$1" "$((SECONDS - begin))" >&2; }
# Runs cases, and fails too where the filter finds none or one is skipped, but for want of compute capability 9.
cases() {
  "$@" 2>&1 | tee "$out/cases.txt" >&2 || return 1
  if grep -qE 'test cases: +0 ' "$out/cases.txt" || grep 'SKIPPED' "$out/cases.txt" | grep -qv 'other than compute capability 9'; then
    echo "gpu.sh: no case was found, or one was skipped: $*" >&2
    return 1
  fi
}

if [ -z "$binaries" ]; then
  stage "build"
  "$top/apps/install_deps.sh" >&2
  cmake -S "$top" --preset release -DINKLING_TESTS=ON -DINKLING_CUDA=ON >&2
  cmake --build "$top/build/release" --target inkling test_engine test_attention test_model test_attention_cuda >&2
  binaries=$out/binaries
  mkdir -p "$binaries"
  cp "$top"/build/release/bin/inkling "$top"/build/release/tests/{engine/test_engine,model/test_model,attention/test_attention{,_cuda}} "$binaries"
fi
binaries=$(cd "$binaries" && pwd)
mkdir -p "$out"
export INKLING_SOURCE_DIR=$top  # binaries from elsewhere know another
# cuBLASLt, for the products of training: the system's, or else the one that PyTorch brings.
torch_libraries=$(python3 -c 'import pathlib, torch
print(":".join(map(str, pathlib.Path(torch.__file__).parents[1].glob("nvidia/*/lib"))))' 2>/dev/null || true)
export LD_LIBRARY_PATH=$binaries/lib:${LD_LIBRARY_PATH:-}:$torch_libraries

stage "tests"
"$binaries/inkling" doctor >&2
for suite in test_engine test_attention test_model; do cases "$binaries/$suite" -tc='*[cuda]*'; done
"$binaries/test_attention_cuda" >&2

if command -v compute-sanitizer >/dev/null; then
  stage "compute-sanitizer"
  # TOOL SUITE FILTER…: each filter by itself, so that none finds nothing unseen.
  sanitized() {
    for filter in "${@:3}"; do
      cases compute-sanitizer --tool "$1" --error-exitcode 1 "$binaries/$2" -tc="*[cuda]*$filter*"
    done
  }
  for tool in memcheck racecheck; do
    sanitized "$tool" test_model 'generator'
    sanitized "$tool" test_engine 'through a norm' 'few rows' 'short rows'
  done
  sanitized memcheck test_model 'same bits twice' 'beside a narrow MLP' 'between two attentions'
  sanitized memcheck test_engine 'follow each other at once'
  sanitized memcheck test_attention 'recorded' 'no queries' 'with other heads'
else
  echo "compute-sanitizer: not installed, left out" >&2
fi

stage "benchmark"
if ! python3 -c 'import torch' 2>/dev/null; then
  echo "PyTorch is not installed: no random GPT-2 124M, so the sample model alone is measured" >&2
  "$binaries/inkling" bench --model "$top/weights/sample" --device cuda --dtype bf16 -p 256 -n 64 -b 1,16,64 --output json \
    >"$out/gpu.json"
  cat "$out/gpu.json"
  exit
fi
model=$out/gpt2-124m
[ -f "$model/config.json" ] || python3 "$top/tests/bench/gpu_torch.py" make "$model"
measure() { "$binaries/inkling" bench --model "$model" --device cuda --cache-dir none --output json "$@"; }
measure --dtype bf16 -p 512,1024 -n 64 -d 512 -b 1,16,64 >"$out/inkling.json"
measure --dtype f32 -p 512,1024 -n 64 -d 512 -b 1,16,64 >"$out/inkling_f32.json"
python3 "$top/tests/bench/gpu_torch.py" run "$model" >"$out/torch.jsonl"
python3 "$top/tests/bench/gpu_report.py" "$out"
python3 "$top/tests/bench/sdpa_gpu.py" --inkling "$binaries/inkling" --json "$out/sdpa.json" | tee "$out/sdpa.md"
python3 "$top/tests/bench/train_gpu.py" --inkling "$binaries/inkling" --json "$out/train.json" | tee "$out/train.md"
stage "done"
