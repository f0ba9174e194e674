"""Two replicas on one database, a load as SNS would post it, and what has to be in the files then."""

import heapq
import http.client
import json
import queue
import signal
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

from common import free_port, get, order_of, wait
from sender import TOPIC

# SNS's default policy for HTTP: three retries, 20 seconds apart; then the notification is gone.
RETRIES = (20, 20, 20)
INSTANCES = 40


class Replica:
    """One Runbell. All lines of one route go to the replica called `a`, of the other to either."""

    def __init__(self, binary, folder, name, database, sender):
        self.binary, self.folder, self.name = binary, folder / name, name
        self.port, self.admin = free_port(), free_port()
        self.folder.mkdir(parents=True)
        self.config = self.folder / "runbell.toml"
        self.config.write_text(f"""
[server]
listen = "127.0.0.1:{self.port}"
replica = "{name}"
gap_hold = "0s"
[admin]
listen = "127.0.0.1:{self.admin}"
socket = "off"
[store]
url = "{database}"
[[topic]]
arn = "{TOPIC}"
endpoint = "{sender.base}"
[sink.whole]
type = "file"
path = "{folder}/whole.jsonl"
on = "a"
[sink.shared]
type = "file"
path = "{folder}/shared-{{replica}}.jsonl"
[[route]]
name = "whole"
to = ["whole"]
order = "topic"
hold = "2s"
redundant = "send"
[[route]]
name = "shared"
to = ["shared"]
order = "instance"
hold = "2s"
redundant = "send"
""")
        with open(self.folder / "log", "a") as log:
            self.process = subprocess.Popen(
                [binary, "serve", "--config", self.config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def ready(self):
        wait(f"replica {self.name}", 60, lambda: get(f"http://127.0.0.1:{self.admin}/-/ready"))

    def waiting(self):
        tally = get(f"http://127.0.0.1:{self.admin}/api/v1/tally")
        return tally is None or sum(sink["waiting"] for sink in json.loads(tally)["sinks"])

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Fleet:
    """Two replicas, and all that was answered with 200."""

    def __init__(self, binary, folder, database, sender):
        self.folder, self.sender = folder, sender
        self.taken, self.lost, self.failed = {}, [], 0
        self.number, self.marks = 0, Counter()
        self.lock = threading.Lock()
        self.local = threading.local()
        self.replicas = []
        try:
            for name in "ab":
                self.replicas.append(Replica(binary, folder, name, database, sender))
            for replica in self.replicas:
                replica.ready()
        except BaseException:
            self.stop()
            raise

    def message(self):
        """The next message: each instance of a command begins, and then ends."""
        command, at = divmod(self.number, 2 * INSTANCES)
        instance, is_end = divmod(at, 2)
        self.number += 1
        moment = datetime.now(timezone.utc).isoformat(timespec="microseconds")[:-6] + "Z"
        status = "Success" if is_end else "InProgress"
        return self.sender.sign({
            "commandId": f"{command:08x}-0000-4000-8000-000000000000", "documentName": "AWS-RunShellScript",
            "instanceId": f"i-{instance:017x}", "requestedDateTime": moment, "eventTime": moment,
            "status": status, "detailedStatus": status,
        })

    def post(self, place, message):
        """Posts to one replica, and to the other when that fails, as a balancer does."""
        name, headers, body = message
        for replica in self.replicas[place % 2:] + self.replicas[:place % 2]:
            connections = self.local.__dict__.setdefault("connections", {})
            connection = connections.get(replica.port)
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=15)
                connections[replica.port] = connection
            try:
                connection.request("POST", "/sns", body, headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    with self.lock:
                        self.taken[name] = time.monotonic()
                    return True
                if answer.status != 503:
                    raise SystemExit(f"answered {answer.status}")
            except (OSError, http.client.HTTPException):
                connection.close()
            with self.lock:
                self.failed += 1
        return False

    def burst(self, count, at_once):
        """Posts so many, some of them at once; seconds for each."""
        waiting = queue.SimpleQueue()
        for place in range(count):
            waiting.put((place, self.message()))

        def work():
            while True:
                try:
                    place, message = waiting.get_nowait()
                except queue.Empty:
                    return
                if not self.post(place, message):
                    self.lost.append(message[0])

        workers = [threading.Thread(target=work) for _ in range(at_once)]
        began = time.monotonic()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return (time.monotonic() - began) / count

    def stream(self, rate, goes_on):
        """Posts at a rate while `goes_on(now)` says so, and retries as SNS does by default."""
        due, place, began = [], 0, time.monotonic()
        open_posts = set()

        def attempt(place, message, retries):
            if not self.post(place, message):
                if retries:
                    again = time.monotonic() + retries[0]
                    with self.lock:
                        heapq.heappush(due, (again, place, message, retries[1:]))
                else:
                    self.lost.append(message[0])

        with ThreadPoolExecutor(max_workers=64) as pool:
            def submit(*post):
                task = pool.submit(attempt, *post)
                open_posts.add(task)

            while True:
                now = time.monotonic()
                streams = goes_on(now)
                if streams and now >= began + place / rate:
                    submit(place, self.message(), RETRIES)
                    place += 1
                with self.lock:
                    first = heapq.heappop(due) if due and due[0][0] <= now else None
                if first:
                    submit(*first[1:])
                for task in [task for task in open_posts if task.done()]:
                    open_posts.remove(task)
                    task.result()
                if not streams and not open_posts and not due:
                    return
                time.sleep(0.002)

    def settle(self):
        """Waits until everything that was taken is delivered."""
        wait("the deliveries", 120, lambda: self.replicas[0].waiting() == 0)

    def stop(self):
        codes = [replica.stop() for replica in self.replicas]
        return [f"a replica ended with {code}" for code in codes if code]

    def lines(self, name):
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def check(self):
        """What is wrong with the files: everything that got 200 is there once, and in order or marked."""
        problems = []
        shared = {name: self.lines(f"shared-{name}.jsonl") for name in "ab"}
        whole = self.lines("whole.jsonl")
        for route, lines in (("whole", whole), ("shared", sum(shared.values(), []))):
            count = Counter(line["message_id"] for line in lines)
            marked = {line["message_id"] for line in lines if "possible-repeat" in line["marks"]}
            missing = self.taken.keys() - count.keys()
            twice = [name for name, often in count.items() if often > 1 and name not in marked]
            problems += [f"{route}: {len(missing)} of {len(self.taken)} missing"] * bool(missing)
            problems += [f"{route}: {len(twice)} twice, and not marked"] * bool(twice)
        silent = order_of(whole, lambda line: line["topic"])[2]
        for lines in shared.values():
            silent += order_of(lines, lambda line: (line["command"], line["instance"]))[2]
        problems += [f"{len(silent)} out of order, and not marked"] * bool(silent)
        self.marks = Counter(mark for line in whole for mark in line["marks"])
        problems += ["one replica brought everything"] * (not all(shared.values()))
        problems += [f"{len(self.lost)} were never taken"] * bool(self.lost)
        return problems


def report(problems):
    for problem in problems:
        print(f"WRONG: {problem}")
    return bool(problems)
