"""Runs two replicas through PgBouncer in transaction mode, and two straight at the same PostgreSQL, and
compares how long a notification takes until it is kept."""

import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from common import free_port, wait
from database import Server, end, installed, scratch, start
from load import Fleet, report
from sender import Sender

ROUNDS = 7
SERVER_SESSIONS = 5
AT_MOST = 1.3
# Together, and one at a time, where each trip to the database shows.
BURSTS = {"16 at once": (1000, 16), "one by one": (200, 1)}


def ask(programs, port, database, statement):
    done = subprocess.run(
        [programs / "psql", "-XAtq", "-h", "127.0.0.1", "-p", str(port), "-U", "runbell", "-d", database,
         "-c", statement],
        check=True, capture_output=True, text=True,
    )
    return done.stdout.splitlines()


def pooler(programs, place, log, server):
    """PgBouncer, with fewer sessions at the server than two replicas have connections."""
    port = free_port()
    settings = place / "pgbouncer.ini"
    users = place / "users"
    users.write_text('"runbell" ""\n')
    settings.write_text(f"""[databases]
* = host=127.0.0.1 port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
admin_users = runbell
pool_mode = transaction
default_pool_size = {SERVER_SESSIONS}
""")
    process = start(["pgbouncer", settings], place, log)

    def answers():
        try:
            return ask(programs, port, "pooled", "SELECT 1")
        except subprocess.CalledProcessError:
            return None

    try:
        wait("PgBouncer", 30, answers)
    except BaseException:
        end(process)
        raise
    return process, port


def measure(fleets):
    """Milliseconds for each notification, by how many are posted at once and by way; in turn, so that
    whatever else the machine does falls on both alike."""
    took = {name: {way: [] for way in fleets} for name in BURSTS}
    for _ in range(ROUNDS):
        for name, (count, at_once) in BURSTS.items():
            for way, fleet in fleets.items():
                took[name][way].append(1000 * fleet.burst(count, at_once))
                fleet.settle()
    return {name: {way: statistics.median(all) for way, all in ways.items()} for name, ways in took.items()}


def main():
    binary, home = Path(sys.argv[1]), Path(sys.argv[2])
    folder = home / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    programs, sender = installed(), Sender()
    problems, fleets = [], {}
    with scratch() as place:
        server = Server(programs, place, folder / "postgres.log")
        try:
            for way in ("direct", "pooled"):
                ask(programs, server.port, "postgres", f"CREATE DATABASE {way}")
            process, port = pooler(programs, place, folder / "pgbouncer.log", server)
            try:
                for way, at in (("direct", server.port), ("pooled", port)):
                    fleets[way] = Fleet(binary, folder / way, server.url(way, at), sender)
                took = measure(fleets)
                clients = [line for line in ask(programs, port, "pgbouncer", "SHOW CLIENTS")
                           if "|pooled|" in line]
                sessions = [line for line in ask(programs, port, "pgbouncer", "SHOW SERVERS")
                            if "|pooled|" in line]
            finally:
                for fleet in fleets.values():
                    problems += fleet.stop()
                end(process)
        finally:
            server.stop()
    for way, fleet in fleets.items():
        problems += [f"{way}: {problem}" for problem in fleet.check()]
    problems += ["there were sessions enough for everybody"] * (len(clients) <= len(sessions))
    figures = []
    for name, ways in took.items():
        ratio = ways["pooled"] / ways["direct"]
        figures.append(f"{name} {ways['pooled']:.2f} ms against {ways['direct']:.2f} ms ({ratio:.2f} x)")
        problems += [f"{name}: {ratio:.2f} x is more than {AT_MOST} x"] * (ratio > AT_MOST)
    print(f"PgBouncer: {len(fleets['pooled'].taken)} taken through it, {len(clients)} connections over "
          f"{len(sessions)} sessions; {', '.join(figures)}")
    sys.exit(report(problems))


if __name__ == "__main__":
    main()
