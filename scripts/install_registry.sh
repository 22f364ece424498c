#!/usr/bin/env bash
# Installs what the tests of images need and cannot make: a registry server (docker-registry) and
# openssl. Nothing happens where both are there.
set -euo pipefail

missing=()
command -v docker-registry >/dev/null || missing+=(docker-registry)
command -v openssl >/dev/null || missing+=(openssl)
[ ${#missing[@]} -eq 0 ] && exit 0

fail() {
    echo "error: ${missing[*]} not found, which the tests of images need; $1" >&2
    exit 1
}
command -v apt-get >/dev/null || fail "install them by this system's package manager"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "run as root: apt-get install ${missing[*]}"
    as_root=(sudo -n)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq >/dev/null || true
# Debian's package starts a server of its own, which nobody needs here.
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    fail "apt-get install ${missing[*]} failed"
if command -v systemctl >/dev/null; then
    "${as_root[@]}" systemctl disable --now docker-registry >/dev/null 2>&1 || true
fi
