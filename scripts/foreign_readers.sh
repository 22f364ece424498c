#!/usr/bin/env bash
# Makes the Python environment DIR with the packages that read our formats in tests:
#
#     scripts/foreign_readers.sh DIR
#     PATCHWRIGHT_READERS=DIR cargo test -p patchwright-formats
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
if [ -f "$1/ready" ]; then exit 0; fi
python3 -m venv --clear "$1"
"$1/bin/python" -m pip install --quiet --disable-pip-version-check \
    atif==1.8.0 datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1 swebench==5.0.2
touch "$1/ready"
