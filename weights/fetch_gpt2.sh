#!/usr/bin/env bash
# Downloads a published GPT-2 in the form that Inkling reads.
#
#   fetch_gpt2.sh gpt2|gpt2-medium|gpt2-large|gpt2-xl|distilgpt2 [FOLDER]      FOLDER defaults to the model's name
#
# A transfer that is cut resumes where it stopped, in this run or the next. A file gets its name only when it is whole:
# of a large (LFS) file the hub announces the SHA-256 in the header x-linked-etag, and the content must have it; of a
# small file it announces the length. Those say that what arrived is what the hub serves, no more: to pin a model, keep
# the SHA256SUMS that this script leaves in FOLDER and give it to `inkling --verify`. A SHA256SUMS that is already
# there wins over the hub: files must match it.
#
# Environment: INKLING_HUB, the base URL (default https://huggingface.co); INKLING_RETRY_SECONDS, the pause after a failed
# attempt (default one second more after each). Exit: 0 done; 2 usage; 3 cannot download; 4 the content is not what was
# announced; 8 cannot write.
set -euo pipefail

readonly hub="${INKLING_HUB:-https://huggingface.co}"
readonly files=(config.json generation_config.json vocab.json merges.txt tokenizer.json model.safetensors)
readonly attempts=5

fail() {
  local code=$1
  shift
  printf 'fetch_gpt2.sh: %s\n' "$*" >&2
  exit "$code"
}

say() {
  if [ -t 2 ]; then printf '%s\n' "$*" >&2; fi
}

sha256_of() { sha256sum -- "$1" | cut -d' ' -f1; }
size_of() { wc -c <"$1" | tr -d ' '; }

# The last value of header $2 in the saved headers $1, of all the responses of a redirect chain; empty when absent.
header() {
  tr -d '\r' <"$1" | awk -v name="$2" -F': *' 'tolower($1) == name { value = $2 } END { print value }'
}

# The line of FILE in FOLDER/SHA256SUMS; empty when there is none.
pinned_sha256() {
  if [ -f "$folder/SHA256SUMS" ]; then
    awk -v name="$1" '$2 == name || $2 == "*" name { print $1; exit }' "$folder/SHA256SUMS"
  fi
}

# Downloads $1 to $2, going on from what $2 already holds. Each attempt that is cut keeps what came.
download() {
  local url=$1 part=$2 progress=--silent attempt status
  if [ -t 2 ]; then progress=--progress-bar; fi
  for attempt in $(seq "$attempts"); do
    status=0
    curl --fail --location --show-error "$progress" --connect-timeout 30 --speed-limit 1 --speed-time 60 \
      --continue-at - --output "$part" -- "$url" 2>"$scratch/curl.err" || status=$?
    case $status in
      0) return 0 ;;
      22 | 33 | 36) # an HTTP error, or a server that cannot go on from here: 416 also when the part is whole already
        grep -q ' 416' "$scratch/curl.err" && return 0
        [ "$status" = 22 ] || rm -f -- "$part"
        ;;
      23) fail 8 "cannot write $part" ;;
    esac
    say "attempt $attempt of $attempts failed; trying again"
    [ "$attempt" = "$attempts" ] || sleep "${INKLING_RETRY_SECONDS:-$attempt}"
  done
  fail 3 "cannot download $url: $(tail -n 1 "$scratch/curl.err")"
}

# Sets announced_sha256 and announced_size of the file at URL $1; the hub puts them on its first response.
ask() {
  local headers=$scratch/headers
  curl --fail --head --location --silent --show-error --retry 3 --connect-timeout 30 \
    --dump-header "$headers" --output /dev/null -- "$1" 2>"$scratch/curl.err" ||
    fail 3 "cannot ask for $1: $(tail -n 1 "$scratch/curl.err")"
  announced_sha256=$(header "$headers" x-linked-etag | tr -d '"' | sed 's/^W\///')
  announced_size=$(header "$headers" x-linked-size)
  if [ -z "$announced_size" ]; then announced_size=$(header "$headers" content-length); fi
  # The etag of a small file is a git hash of 40 digits, which says nothing about the bytes alone.
  if [[ ! $announced_sha256 =~ ^[0-9a-f]{64}$ ]]; then announced_sha256=; fi
}

fetch() {
  local name=$1 url="$hub/$repository/resolve/main/$1" target="$folder/$1" part="$folder/.$1.part" pinned got
  pinned=$(pinned_sha256 "$name")
  if [ -n "$pinned" ] && [ -f "$target" ] && [ "$(sha256_of "$target")" = "$pinned" ]; then
    say "$name: here already"
    return 0
  fi
  ask "$url"
  if [ -n "$pinned" ]; then announced_sha256=$pinned; fi
  say "$name: ${announced_size:-?} bytes"
  download "$url" "$part"

  got=$(size_of "$part")
  if [ -n "$announced_size" ] && [ "$got" != "$announced_size" ]; then
    rm -f -- "$part"
    fail 4 "$name: size: expected $announced_size, got $got"
  fi
  got=$(sha256_of "$part")
  if [ -n "$announced_sha256" ] && [ "$got" != "$announced_sha256" ]; then
    rm -f -- "$part"
    fail 4 "$name: sha256: expected $announced_sha256, got $got"
  fi
  if [ "$name" = model.safetensors ] && [ -z "$announced_sha256" ]; then
    say "$name: the hub announced no SHA-256; only the size was checked"
  fi
  sync -- "$part" || fail 8 "cannot write $part"
  mv -f -- "$part" "$target" || fail 8 "cannot write $target"
}

write_sums() {
  (cd -- "$folder" && sha256sum -- "${files[@]}") >"$folder/.SHA256SUMS.part" || fail 8 "cannot write $folder/SHA256SUMS"
  mv -f -- "$folder/.SHA256SUMS.part" "$folder/SHA256SUMS" || fail 8 "cannot write $folder/SHA256SUMS"
}

case ${1-} in
  gpt2 | gpt2-medium | gpt2-large | gpt2-xl) readonly repository="openai-community/$1" ;;
  distilgpt2) readonly repository="distilbert/$1" ;;
  *) fail 2 "unknown model '${1-}': usage: fetch_gpt2.sh gpt2|gpt2-medium|gpt2-large|gpt2-xl|distilgpt2 [FOLDER]" ;;
esac
readonly folder=${2:-$1}
command -v curl >/dev/null || fail 3 "curl is needed"
command -v sha256sum >/dev/null || fail 3 "sha256sum is needed"
mkdir -p -- "$folder" || fail 8 "cannot make the folder $folder"
scratch=$(mktemp -d) || fail 8 "cannot make a temporary folder"
trap 'rm -rf -- "$scratch"' EXIT

for file in "${files[@]}"; do fetch "$file"; done
write_sums
say "done: $folder"
