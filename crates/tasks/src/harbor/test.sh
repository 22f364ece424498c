#!/bin/bash
# Runs the hidden tests on what the agent left in the repository and writes the reward, 0 or 1.
set -u
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
out="${VERIFIER_DIR:-/logs/verifier}"
mkdir -p "$out"
echo 0 > "$out/reward.txt"
cd "${REPO_DIR:-/testbed}" || exit 1
if [ -f /opt/miniconda3/bin/activate ]; then
    . /opt/miniconda3/bin/activate testbed
fi

# The hidden tests take the place of whatever the agent made of these files.
files=(@FILES@)
base=@BASE@
for file in "${files[@]}"; do
    git checkout -q "${base:-HEAD}" -- "$file" 2> /dev/null || rm -f "$file"
done
if [ -s "$here/test.patch" ]; then
    git apply --whitespace=nowarn "$here/test.patch" 2> /dev/null \
        || patch -p1 --forward -s -i "$here/test.patch" || exit 1
fi

run() {
    @COMMAND@ "$@"
}
run "${files[@]}" > "$out/tests.log" 2>&1
python3 "$here/score.py" "$here/patchwright.json" "$out/tests.log" > "$out/reward.txt"
