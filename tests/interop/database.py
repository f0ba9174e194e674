"""A PostgreSQL server in a temporary folder, run by somebody without rights; it ends with the scenario."""

import contextlib
import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from common import free_port, wait


def unprivileged():
    """For `Popen`: who runs a server that refuses to be run by root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def scratch():
    """A folder that belongs to that user, and goes away."""
    folder = Path(tempfile.mkdtemp(prefix="runbell-interop-"))
    try:
        if owner := unprivileged():
            os.chown(folder, owner["user"], owner["group"])
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start(command, folder, log):
    """Starts a server; its output goes to a file that the server need not be able to open."""
    with open(log, "a") as output:
        return subprocess.Popen(
            [str(word) for word in command], cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
            stderr=output, env={"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C"},
            **unprivileged(),
        )


def end(process, how=signal.SIGTERM, within=60):
    """Ends a process that was started here, and waits for it."""
    if process.poll() is None:
        process.send_signal(how)
    try:
        process.wait(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def installed():
    """The programs of the system's newest PostgreSQL."""
    found = glob.glob("/usr/lib/postgresql/*/bin/initdb")
    if found:
        return Path(max(found, key=lambda path: int(path.split("/")[4]))).parent
    found = shutil.which("initdb")
    if not found:
        raise SystemExit("PostgreSQL is missing: `make database` installs it")
    return Path(found).resolve().parent


class Server:
    def __init__(self, programs, folder, log):
        self.port = free_port()
        data = folder / "data"
        with open(log, "a") as output:
            subprocess.run(
                [programs / "initdb", "-D", data, "-U", "runbell", "-A", "trust", "-E", "UTF8",
                 "--locale=C", "--no-sync"],
                check=True, cwd=folder, stdout=output, stderr=output, **unprivileged(),
            )
        settings = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
            "shared_buffers": "64MB", "max_connections": "100",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        self.process = start([programs / "postgres", "-D", data, *options], folder, log)
        # The server writes this line when it takes connections.
        pid = data / "postmaster.pid"
        wait("PostgreSQL", 30, lambda: pid.exists() and "ready" in pid.read_text())

    def url(self, database="postgres", port=None):
        return f"postgres://runbell@127.0.0.1:{port or self.port}/{database}"

    def stop(self):
        # SIGINT is PostgreSQL's fast shutdown: sessions are cut, nothing is lost.
        end(self.process, signal.SIGINT)
