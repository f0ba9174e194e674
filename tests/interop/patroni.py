"""Kills the leader of a PostgreSQL cluster under Patroni, in the middle of a load, and looks at what two
replicas made of it. TTL is Patroni's own `ttl`; 30 seconds are its default."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from common import free_port, get, wait
from database import end, installed, scratch, start
from load import Fleet, report
from sender import Sender

TTL = int(os.environ.get("TTL", "30"))
RATE = 50
# How long the load goes on before the leader is killed, and after writes pass again.
BEFORE, AFTER = 10, 10
# The policy of SNS gives a notification up after a minute.
AT_MOST = 60


class Cluster:
    """One etcd, and two servers of which one follows the other synchronously."""

    def __init__(self, place, logs):
        self.place, self.logs = place, logs
        self.etcd_port = free_port()
        self.rest, self.ports = [free_port(), free_port()], [free_port(), free_port()]
        self.nodes, self.etcd = [], None

    def begin(self):
        peers, clients = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{self.etcd_port}"
        self.etcd = start(
            ["etcd", "--name", "one", "--data-dir", self.place / "etcd", "--log-level", "error",
             "--listen-client-urls", clients, "--advertise-client-urls", clients,
             "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
             "--initial-cluster", f"one={peers}"],
            self.place, self.logs / "etcd.log",
        )
        wait("etcd", 30, lambda: "true" in (get(f"{clients}/health") or ""))
        self.add()
        wait("a leader", 60, lambda: self.leader() is not None)
        self.add()
        wait("a synchronous standby", 90, lambda: get(f"http://127.0.0.1:{self.rest[1]}/synchronous"))

    def add(self):
        """Starts the next node. Patroni reads YAML, of which JSON is a part."""
        at = len(self.nodes)
        trusted = [f"host {what} all 127.0.0.1/32 trust" for what in ("all", "replication")]
        settings = {
            "scope": "interop",
            "name": f"node{at}",
            "restapi": {"listen": f"127.0.0.1:{self.rest[at]}", "connect_address": f"127.0.0.1:{self.rest[at]}"},
            "etcd3": {"host": f"127.0.0.1:{self.etcd_port}"},
            "bootstrap": {
                # Nothing that was committed is lost when the leader is.
                "dcs": {"ttl": TTL, "loop_wait": min(10, TTL // 3), "retry_timeout": min(10, TTL // 3),
                        "synchronous_mode": True},
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}],
                "pg_hba": trusted,
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.ports[at]}",
                "connect_address": f"127.0.0.1:{self.ports[at]}",
                "data_dir": str(self.place / f"data{at}"),
                "bin_dir": str(installed()),
                "pgpass": str(self.place / f"pgpass{at}"),
                "authentication": {
                    "superuser": {"username": "runbell", "password": "runbell"},
                    "replication": {"username": "follower", "password": "follower"},
                },
                "parameters": {"unix_socket_directories": str(self.place), "shared_buffers": "64MB"},
            },
        }
        path = self.place / f"node{at}.yml"
        path.write_text(json.dumps(settings))
        self.nodes.append(start(["patroni", path], self.place, self.logs / f"node{at}.log"))

    def leader(self):
        for at in range(len(self.nodes)):
            if get(f"http://127.0.0.1:{self.rest[at]}/primary"):
                return at
        return None

    def postmaster(self, at):
        """The pid of a node's server, if it runs."""
        try:
            return int((self.place / f"data{at}" / "postmaster.pid").read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return None

    def kill_leader(self):
        """As when a machine dies; says which node it was."""
        at = self.leader()
        server = self.postmaster(at)
        self.nodes[at].kill()
        os.kill(server, signal.SIGKILL)
        self.nodes[at].wait()
        return at

    def url(self):
        return f"postgres://runbell@{','.join(f'127.0.0.1:{port}' for port in self.ports)}/postgres"

    def stop(self):
        for node in self.nodes:
            # Patroni ends its server before itself.
            end(node)
        if self.etcd:
            end(self.etcd)


def stream(fleet, cluster):
    """The load, with the kill in it; who was killed, and when."""
    began = time.monotonic()
    kill = {}

    def goes_on(now):
        if not kill and now >= began + BEFORE:
            kill["at"] = time.monotonic()
            kill["node"] = cluster.kill_leader()
        if not kill or now < kill["at"] + AFTER:
            return True
        if "back" not in kill:
            with fleet.lock:
                latest = max(fleet.taken.values())
            # What was under way when the leader died does not count.
            if latest > kill["at"] + 3:
                kill["back"] = latest
            return now < kill["at"] + 2 * AT_MOST
        return now < kill["back"] + AFTER

    fleet.stream(RATE, goes_on)
    return kill


def outage(fleet):
    """The longest time in which nothing was taken, while something was posted at every moment."""
    moments = sorted(fleet.taken.values())
    return max(after - before for before, after in zip(moments, moments[1:]))


def main():
    binary, home = Path(sys.argv[1]), Path(sys.argv[2])
    folder = home / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    problems = []
    with scratch() as place:
        cluster = Cluster(place, folder)
        try:
            cluster.begin()
            fleet = Fleet(binary, folder, cluster.url(), Sender())
            try:
                kill = stream(fleet, cluster)
                fleet.settle()
                leads = cluster.leader()
            finally:
                problems += fleet.stop()
        finally:
            cluster.stop()
    problems += fleet.check()
    problems += ["the leader is who it was"] * (leads in (None, kill["node"]))
    gap = outage(fleet)
    problems += [f"nothing was taken for {gap:.0f} s, for longer than SNS tries"] * (gap >= AT_MOST)
    marks = ", ".join(f"{count} {mark}" for mark, count in sorted(fleet.marks.items()))
    print(f"Patroni, ttl {TTL} s: leader killed, nothing taken for {gap:.1f} s; {fleet.number} sent, "
          f"{len(fleet.taken)} taken, {len(fleet.lost)} given up by SNS; "
          f"{'see below' if problems else f'all taken are in the files, once and in order, or marked ({marks})'}")
    sys.exit(report(problems))


if __name__ == "__main__":
    main()
