#!/usr/bin/env bash
# Installs the build into a temporary prefix, builds the consumer through find_package and through pkg-config, and runs
# both: consumer/check.sh BUILD_DIR CONSUMER_DIR MODEL
set -euo pipefail
build=$1 consumer=$2 model=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" >/dev/null
flags=$(grep -oP '(?<=^INKLING_SANITIZE:STRING=).*' "$build/CMakeCache.txt" || true)
export CXXFLAGS=${flags:+-fsanitize=$flags}
cmake -S "$consumer" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" >/dev/null
cmake --build "$work/build" >/dev/null
text=$("$work/build/consumer" "$model" "ROMEO:")
echo "find_package: $text"
grep -q "I'll not, my lord" <<<"$text"

lib=$(dirname "$(find "$work/prefix" -name libinkling_model.a)")
export PKG_CONFIG_PATH="$lib/pkgconfig"
# shellcheck disable=SC2046,SC2086
${CXX:-c++} -std=c++20 ${CXXFLAGS:-} "$consumer/main.cpp" -o "$work/plain" \
  $(pkg-config --define-prefix --static --cflags --libs inkling)
[ "$("$work/plain" "$model" "ROMEO:")" = "$text" ]
echo "pkg-config: the same text"

"$work/prefix/bin/inkling" generate -m "$work/prefix/share/inkling/sample" -p "ROMEO:" --temperature 0 -n 24 -q \
  --no-display-prompt | diff - <(printf '%s\n' "$text")
echo "installed program: the same text"
