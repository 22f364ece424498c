#!/usr/bin/env bash
# Makes virtual environments with the clients that tests drive our servers with, under DIR
# (default: target/sdks): the official tinker SDK, oldest and newest, the openai package and
# mini-swe-agent. Then: source DIR/env.sh
set -euo pipefail
dir=${1:-target/sdks}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

make() { # name, packages…
  local venv="$dir/$1"
  shift
  [ -f "$venv/ready" ] && return
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "$@"
  touch "$venv/ready"
}

make tinker-0.25 'tinker>=0.25,<0.26'
make tinker-0.38 'tinker>=0.38,<0.39'
make agents 'openai>=2.54,<3' 'mini-swe-agent>=2.4,<3'

cat > "$dir/env.sh" <<ENV
export PATCHWRIGHT_TINKER_VENVS=$dir/tinker-0.25:$dir/tinker-0.38
export PATCHWRIGHT_OPENAI_VENV=$dir/agents
export PATCHWRIGHT_MINI_VENV=$dir/agents
ENV
