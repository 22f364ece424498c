#!/usr/bin/env bash
# Makes tasks of real bug-fix releases: fetches pairs of source releases with pip, the packages that
# their tests need, and writes DIR/tasks.jsonl (SWE-bench rows whose repositories are directories).
# Needs python3 with pip, and the package index.
#
#   scripts/fetch_releases.sh DIR
#   PATCHWRIGHT_RELEASES=DIR cargo test -p patchwright-agent --test agent releases
set -euo pipefail

if [ $# -ne 1 ]; then
  echo "usage: $0 DIR" >&2
  exit 2
fi
mkdir -p "$1"
dir=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

# package, buggy release, fixed release, directory of its tests
pairs=(
  "xmltodict 0.14.1 0.14.2 tests"
  "parse 1.20.0 1.20.1 tests"
  "icalendar 5.0.4 5.0.5 src/icalendar/tests"
)

fetch() { # package version
  if [ -d "$dir/$1-$2" ]; then return; fi
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
    --dest "$dir/sdists" "$1==$2"
  tar -xzf "$dir/sdists/$1-$2.tar.gz" -C "$dir"
}

for pair in "${pairs[@]}"; do
  read -r package buggy fixed _ <<<"$pair"
  fetch "$package" "$buggy"
  fetch "$package" "$fixed"
done

# What the tests import besides the packages themselves.
if [ ! -d "$dir/site-packages" ]; then
  rm -rf "$dir/site-packages.part"
  python3 -m pip install --quiet --disable-pip-version-check \
    --target "$dir/site-packages.part" pytest hypothesis python-dateutil pytz
  mv "$dir/site-packages.part" "$dir/site-packages"
fi

printf '%s\n' "${pairs[@]}" | python3 "$here/release_tasks.py" "$dir"
