"""Runs two replicas on each version of PostgreSQL that is supported, and looks at what they wrote."""

import shutil
import sys
from pathlib import Path

from database import Server, scratch
from load import Fleet, report
from sender import Sender

VERSIONS = range(12, 19)
COUNT = 1000


def run(version, binary, home, sender):
    folder = home / "run" / str(version)
    folder.mkdir(parents=True)
    with scratch() as place:
        # Whoever runs the server may not be able to reach this repository.
        programs = place / "programs"
        shutil.copytree(home / "node_modules" / f"postgresql-{version}" / "native", programs, symlinks=True)
        server = Server(programs / "bin", place, folder / "postgres.log")
        try:
            fleet = Fleet(binary, folder, server.url(), sender)
            try:
                each = fleet.burst(COUNT, 16)
                fleet.settle()
            finally:
                problems = fleet.stop()
        finally:
            server.stop()
    problems += fleet.check()
    print(f"PostgreSQL {version}: {len(fleet.taken)} taken, {each * 1000:.2f} ms each with 16 at once; "
          f"{'see below' if problems else 'all in both files once and in order'}", flush=True)
    return report(problems)


def main():
    binary, home = Path(sys.argv[1]), Path(sys.argv[2])
    shutil.rmtree(home / "run", ignore_errors=True)
    sender = Sender()
    sys.exit(sum(run(version, binary, home, sender) for version in VERSIONS) > 0)


if __name__ == "__main__":
    main()
