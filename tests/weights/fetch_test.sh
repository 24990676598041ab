#!/usr/bin/env bash
# fetch_gpt2.sh against a hub of our own (fetch_hub.py): whole, cut, wrong, pinned. Exit 77: skipped.
set -euo pipefail
readonly script=$1
here=$(cd "$(dirname "$0")" && pwd)
for tool in curl python3 sha256sum; do
  command -v $tool >/dev/null || { echo "SKIPPED: $tool not found"; exit 77; }
done

root=$(mktemp -d)
hub_pid=
cleanup() {
  if [ -n "$hub_pid" ]; then kill "$hub_pid" 2>/dev/null || true; fi
  rm -rf -- "$root"
}
trap cleanup EXIT

# start_hub FAULT: serves root/hub with one fault, see fetch_hub.py.
start_hub() {
  if [ -n "$hub_pid" ]; then kill "$hub_pid"; wait "$hub_pid" 2>/dev/null || true; fi
  rm -f "$root/port"
  python3 "$here/fetch_hub.py" "$root/hub" "$1" "$root/port" 2>"$root/hub.log" &
  hub_pid=$!
  for _ in $(seq 100); do [ -s "$root/port" ] && break; sleep 0.1; done
  INKLING_HUB="http://127.0.0.1:$(cat "$root/port")"
  export INKLING_HUB INKLING_RETRY_SECONDS=0 no_proxy=127.0.0.1
}

# expect CODE FOLDER [MODEL]: the script ends so.
expect() {
  local status=0
  "$script" "${3:-gpt2}" "$2" >"$root/out" 2>"$root/err" || status=$?
  if [ "$status" != "$1" ]; then
    echo "FAILED: expected exit $1, got $status:"; cat "$root/err" "$root/hub.log"; exit 1
  fi
}
check() { "$@" || { echo "FAILED: $*"; cat "$root/err" "$root/hub.log"; exit 1; }; }

readonly model=$root/hub/openai-community/gpt2/resolve/main
mkdir -p "$model"
for name in config.json generation_config.json vocab.json merges.txt tokenizer.json; do
  echo "{\"$name\": 1}" >"$model/$name"
done
head -c 3000000 /dev/urandom >"$model/model.safetensors"

start_hub none
expect 0 "$root/whole"
check cmp "$model/model.safetensors" "$root/whole/model.safetensors"
check [ "$(find "$root/whole" -type f | wc -l)" = 7 ]
check [ ! -s "$root/out" ] && check [ ! -s "$root/err" ] # no terminal, no chatter
(cd "$root/whole" && check sha256sum --quiet -c SHA256SUMS)
expect 2 "$root/none" gpt3
check grep -q "unknown model" "$root/err"
for repository in openai-community/gpt2-{medium,large,xl} distilbert/distilgpt2; do # each asked for where it is published
  expect 3 "$root/none" "${repository#*/}"
  check grep -q "404" "$root/err"
  check grep -q "HEAD /$repository/resolve/main/config.json " "$root/hub.log"
done

start_hub cut # every answer of the model stops after 1,000,000 bytes
expect 0 "$root/cut"
check cmp "$model/model.safetensors" "$root/cut/model.safetensors"
check grep -q "Range: bytes=1000000-" "$root/hub.log"
check grep -q "Range: bytes=2000000-" "$root/hub.log"

start_hub none # what an earlier run left behind is gone on with, and one that is whole already is taken
mkdir "$root/left"
head -c 2999999 "$model/model.safetensors" >"$root/left/.model.safetensors.part"
cp "$model/vocab.json" "$root/left/.vocab.json.part"
expect 0 "$root/left"
check cmp "$model/model.safetensors" "$root/left/model.safetensors"
check grep -q "Range: bytes=2999999-" "$root/hub.log"

start_hub norange # a server that knows no ranges
mkdir "$root/norange"
head -c 5 "$model/model.safetensors" >"$root/norange/.model.safetensors.part"
expect 0 "$root/norange"
check cmp "$model/model.safetensors" "$root/norange/model.safetensors"

start_hub wronghash
expect 4 "$root/wronghash"
check grep -q "model.safetensors: sha256: expected 0000" "$root/err"
check [ ! -e "$root/wronghash/model.safetensors" ]
check [ ! -e "$root/wronghash/.model.safetensors.part" ]

start_hub none # a manifest that is there wins over the hub
mkdir "$root/pinned"
echo "$(printf '%064d' 1)  config.json" >"$root/pinned/SHA256SUMS"
expect 4 "$root/pinned"
check grep -q "config.json: sha256: expected 0000" "$root/err"

start_hub none # an old file stays when the new one is refused, and stays untouched when it is right
cp "$root/whole/SHA256SUMS" "$root/cut/SHA256SUMS"
expect 0 "$root/cut"
check sh -c "! grep -q HEAD '$root/hub.log'"

touch "$root/file"
expect 8 "$root/file/below"
echo "fetch_gpt2.sh: all cases passed"
