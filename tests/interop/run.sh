#!/bin/sh
# Runbell against other people's programs, all on the loopback; `make interop`. The first argument
# chooses, nothing means all of them:
#   localstack  a real SNS emulator; needs Python 3.13 or newer and openssl
#   sinks       mail servers, Alertmanager, the vendors' own models; the same, and Node.js 20 with npm
#   replicas    HAProxy before two replicas
#   postgres    two replicas on each version of PostgreSQL; needs Python 3.11 or newer, Node.js and npm
#   pgbouncer   two replicas through PgBouncer in transaction mode; needs Python 3.11
#   patroni     two replicas while the leader of a PostgreSQL cluster is killed; needs Python 3.11
# RUNBELL names a binary to be used instead of one that is built here.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
home=$root/target/interop

which=${1:-all}
case $which in all|localstack|sinks|replicas|postgres|pgbouncer|patroni) ;; *)
  echo "interop: there is no \`$which\`" >&2
  exit 2
esac

# Debian's packages, if a program is missing; RUNLEVEL keeps their own services from starting.
debian() {
  program=$1
  shift
  if command -v "$program" >/dev/null; then return; fi
  if [ "$(id -u)" -eq 0 ]; then as_root=; else as_root=sudo; fi
  $as_root env SYSTEMD_OFFLINE=1 RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -qy --no-install-recommends "$@" >/dev/null
}

# Debian keeps servers there, and not every user has it in the PATH.
PATH=$PATH:/usr/sbin

case $which in all|replicas)
  debian haproxy haproxy
  (cd "$root" && cargo test --locked --test it replicas::rolling:: -- --ignored --nocapture)
esac
if [ "$which" = replicas ]; then exit 0; fi

# Which parts need which: LocalStack asks for the newest.
case $which in
  all|localstack|sinks) oldest=13 ;;
  *) oldest=11 ;;
esac
python=
for candidate in ${PYTHON313:-} python3.14 python3.13 python3 "$HOME"/.pyenv/versions/3.1[3-9]*/bin/python; do
  if "$candidate" -c "import sys; sys.exit(sys.version_info < (3, $oldest))" 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "interop needs Python 3.$oldest or newer: install it, or set PYTHON313" >&2
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

# What a package.json names, in a folder of its own; for this machine, where that matters.
node_modules() {
  if ! command -v npm >/dev/null; then
    echo "interop needs Node.js 20 or newer with npm for this: install them" >&2
    exit 1
  fi
  case $(uname -m) in
    aarch64|arm64) processor=arm64 ;;
    *) processor=x64 ;;
  esac
  mkdir -p "$home/$2"
  sed "s/linux-x64@/linux-$processor@/" "$here/$1" >"$home/$2/wanted.json"
  if ! cmp -s "$home/$2/wanted.json" "$home/$2/installed.json"; then
    rm -rf "$home/$2/node_modules" "$home/$2/package-lock.json"
    cp "$home/$2/wanted.json" "$home/$2/package.json"
    (cd "$home/$2" && npm install --silent --no-audit --no-fund)
    mv "$home/$2/wanted.json" "$home/$2/installed.json"
  fi
}

cd "$root"
if [ -z "${RUNBELL:-}" ]; then cargo build --locked; fi
binary=${RUNBELL:-$root/target/debug/runbell}
case $which in all|localstack)
  environment localstack
  "$home/localstack/venv/bin/python" "$here/localstack.py" "$binary" "$home/localstack"
esac
case $which in all|sinks)
  environment sinks
  node_modules package.json node
  debian prometheus-alertmanager prometheus-alertmanager
  # aiosmtpd warns of its own settings, at each connection.
  "$home/sinks/venv/bin/python" -W ignore::UserWarning "$here/sinks.py" "$binary" "$home"
esac
case $which in all|postgres)
  environment databases
  node_modules package-postgres.json postgres
  "$home/databases/venv/bin/python" "$here/postgres.py" "$binary" "$home/postgres"
esac
case $which in all|pgbouncer)
  environment databases
  debian pgbouncer pgbouncer
  "$home/databases/venv/bin/python" "$here/pgbouncer.py" "$binary" "$home/pgbouncer"
esac
case $which in all|patroni)
  environment databases
  debian etcd etcd-server
  debian patroni patroni python3-etcd
  "$home/databases/venv/bin/python" "$here/patroni.py" "$binary" "$home/patroni"
esac
