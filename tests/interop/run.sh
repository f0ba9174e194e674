#!/bin/sh
# Runbell against other people's programs, all on the loopback; `make interop`. The first argument
# chooses: `localstack` (a real SNS emulator), `sinks` (mail servers, Alertmanager, the vendors' own
# models), `replicas` (HAProxy before two of them), or nothing for all. The first two need a Python of
# 3.13 or newer, Node.js 20 or newer, npm and openssl.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
home=$root/target/interop

which=${1:-all}
case $which in all|localstack|sinks|replicas) ;; *)
  echo "interop: there is \`localstack\`, \`sinks\` and \`replicas\`, no \`$which\`" >&2
  exit 2
esac

# Debian's package; its own service is not started.
haproxy() {
  if [ -x /usr/sbin/haproxy ]; then return; fi
  if [ "$(id -u)" -eq 0 ]; then as_root=; else as_root=sudo; fi
  $as_root env SYSTEMD_OFFLINE=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -qy --no-install-recommends haproxy >/dev/null
}

case $which in all|replicas)
  haproxy
  (cd "$root" && cargo test --locked --test it replicas::a_rolling_restart -- --ignored --nocapture)
esac
if [ "$which" = replicas ]; then exit 0; fi

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

# A virtual environment for each, since their packages do not agree.
environment() {
  mkdir -p "$home/$1"
  if ! cmp -s "$here/requirements-$1.txt" "$home/$1/installed.txt"; then
    "$python" -m venv --clear "$home/$1/venv"
    "$home/$1/venv/bin/pip" install --quiet -r "$here/requirements-$1.txt"
    cp "$here/requirements-$1.txt" "$home/$1/installed.txt"
  fi
}

models() {
  if ! command -v npm >/dev/null; then
    echo "interop sinks needs Node.js 20 or newer with npm: install them" >&2
    exit 1
  fi
  if ! cmp -s "$here/package.json" "$home/node/package.json"; then
    rm -rf "$home/node"
    mkdir -p "$home/node"
    cp "$here/package.json" "$home/node/package.json"
    (cd "$home/node" && npm install --silent --no-audit --no-fund)
  fi
}

# Debian's package; its own service is not started.
alertmanager() {
  if command -v prometheus-alertmanager >/dev/null; then return; fi
  if [ "$(id -u)" -eq 0 ]; then as_root=; else as_root=sudo; fi
  $as_root env SYSTEMD_OFFLINE=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -qy --no-install-recommends prometheus-alertmanager >/dev/null
}

cd "$root"
cargo build --locked
binary=$root/target/debug/runbell
case $which in all|localstack)
  environment localstack
  "$home/localstack/venv/bin/python" "$here/localstack.py" "$binary" "$home/localstack"
esac
case $which in all|sinks)
  environment sinks
  models
  alertmanager
  # aiosmtpd warns of its own settings, at each connection.
  "$home/sinks/venv/bin/python" -W ignore::UserWarning "$here/sinks.py" "$binary" "$home"
esac
