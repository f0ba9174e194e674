#!/bin/sh
# Runbell against a real SNS emulator: LocalStack, from PyPI, on the loopback. Started by
# `make interop`; needs a Python of 3.13 or newer, and openssl.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
home=$root/target/interop

python=
for candidate in ${PYTHON313:-} python3.14 python3.13 python3 "$HOME"/.pyenv/versions/3.1[3-9]*/bin/python; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 13))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "interop needs Python 3.13 or newer (LocalStack does): install it, or set PYTHON313" >&2
  exit 1
fi

mkdir -p "$home"
if ! cmp -s "$here/requirements.txt" "$home/installed.txt"; then
  "$python" -m venv --clear "$home/venv"
  "$home/venv/bin/pip" install --quiet -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$home/installed.txt"
fi

cd "$root"
cargo build --locked
exec "$home/venv/bin/python" "$here/interop.py" "$root/target/debug/runbell" "$home"
