"""What all scenarios share."""

import socket
import time
import urllib.request
from datetime import datetime


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(what, seconds, look):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise SystemExit(f"waited {seconds} s in vain for {what}")


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return None


def order_of(lines, key):
    """How many lines stand below one of the same lane before them, and how many say so."""
    high, below, late, silent = {}, 0, 0, []
    for line in lines:
        lane, at = key(line), datetime.fromisoformat(line["sort_time"])
        is_late = "late" in line["marks"]
        late += is_late
        if lane in high and at < high[lane]:
            below += 1
            if not is_late:
                silent.append(line)
        high[lane] = max(at, high.get(lane, at))
    return below, late, silent
