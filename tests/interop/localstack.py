"""Subscribes Runbell to two topics of LocalStack, publishes a command on 200 instances to each through
a relay that spoils the order, kills Runbell in the middle, and looks at what it wrote."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import boto3

from common import free_port, get, order_of, wait
from relay import Relay

INSTANCES = 200
HOLD = 5
VERSIONS = ("1", "2")


class LocalStack:
    def __init__(self, folder):
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "SERVICES": "sns",
            "EAGER_SERVICE_LOADING": "1",
            "GATEWAY_LISTEN": f"127.0.0.1:{self.port}",
            "LOCALSTACK_HOST": f"127.0.0.1:{self.port}",
            "FILESYSTEM_ROOT": str(folder),
            "DNS_ADDRESS": "0",
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
        }
        self.log = open(folder / "localstack.log", "w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "localstack.runtime.main"],
            env=environment, stdout=self.log, stderr=self.log, cwd=folder,
        )
        wait("LocalStack", 90, lambda: get(f"{self.base}/_localstack/health"))
        self.sns = boto3.client(
            "sns", region_name="us-east-1", endpoint_url=self.base,
            aws_access_key_id="test", aws_secret_access_key="test",
        )


class Runbell:
    def __init__(self, binary, folder, endpoint, topics):
        self.binary, self.folder = binary, folder
        self.port, self.admin = free_port(), free_port()
        self.config = folder / "runbell.toml"
        self.process = None
        self.counts = Counter()
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-keyout", folder / "tls.key", "-out", folder / "tls.crt"],
            check=True, capture_output=True,
        )
        allowed = "".join(
            f'[[topic]]\narn = "{arn}"\nendpoint = "{endpoint}"\n' for arn in topics
        )
        self.config.write_text(f"""
[server]
listen = "127.0.0.1:{self.port}"
tls = {{ cert = "tls.crt", key = "tls.key" }}
gap_hold = "{HOLD}s"
[admin]
listen = "127.0.0.1:{self.admin}"
[store]
url = "sqlite:runbell.db"
{allowed}
[sink.audit]
type = "file"
path = "audit.jsonl"
[sink.failures]
type = "file"
path = "failures.jsonl"
[[route]]
name = "audit"
to = ["audit"]
order = "topic"
hold = "{HOLD}s"
redundant = "send"
[[route]]
name = "failures"
to = ["failures"]
when = {{ kind = "invocation", status = "!Success" }}
order = "instance"
""")

    def start(self):
        log = open(self.folder / "runbell.log", "a")
        self.process = subprocess.Popen(
            [self.binary, "serve", "--config", self.config], stderr=log, stdout=log
        )
        wait("Runbell", 30, lambda: get(f"http://127.0.0.1:{self.admin}/-/ready"))

    def kill(self):
        self.note_counts()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.note_counts()
        self.process.terminate()
        if self.process.wait(timeout=60) != 0:
            raise SystemExit("Runbell did not stop in order")

    def note_counts(self):
        for line in (get(f"http://127.0.0.1:{self.admin}/metrics") or "").splitlines():
            if line.startswith("runbell_received_total{"):
                labels, value = line.rsplit(" ", 1)
                self.counts[labels.split('result="')[1].split('"')[0]] += int(float(value))
            if line.startswith("runbell_lanes_rescued_total "):
                self.counts["lanes rescued"] += int(float(line.split()[1]))

    def ask(self, *arguments):
        done = subprocess.run(
            [self.binary, *arguments, "--config", self.config], capture_output=True, check=True
        )
        return json.loads(done.stdout)

    def lines(self, name):
        path = self.folder / name
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


def publish(localstack, topics, relay, runbell):
    """The life of one command on each topic, killing Runbell halfway; what was told, by topic."""
    told = {arn: set() for arn in topics}
    parts = [(None, "InProgress")]
    parts += [(number, "InProgress") for number in range(INSTANCES)]
    ends = [(number, "Failed" if number % 10 == 7 else "Success") for number in range(INSTANCES)]
    random.Random(7).shuffle(ends)
    parts += ends + [(None, "Failed")]
    relay.disorder = True
    for at, (number, status) in enumerate(parts):
        if at == len(parts) // 2:
            print(f"  {at * len(topics)} published; kill -9")
            runbell.kill()
            time.sleep(2)
            runbell.start()
        for index, arn in enumerate(topics):
            moment = datetime.now(timezone.utc).isoformat(timespec="microseconds")[:-6] + "Z"
            message = {
                "commandId": f"{index}0000000-0000-4000-8000-000000000000",
                "documentName": "AWS-RunShellScript",
                "requestedDateTime": moment, "status": status, "eventTime": moment,
            }
            if number is None:
                message |= {"instanceIds": [], "expiresAfter": moment,
                            "outputS3BucketName": "", "outputS3KeyPrefix": ""}
            else:
                message |= {"instanceId": f"i-{number:017x}", "detailedStatus": status}
            localstack.sns.publish(
                TopicArn=arn, Message=json.dumps(message, separators=(",", ":")),
                Subject="EC2 Run Command Notification us-east-1",
            )
            told[arn].add((message.get("instanceId"), status))
    return told


def check(runbell, told, relay):
    problems = []
    audit = [line for line in runbell.lines("audit.jsonl") if line["kind"] in ("summary", "invocation")]
    for arn, wanted in told.items():
        found = Counter((line["instance"], line["status"]) for line in audit if line["topic"] == arn)
        missing, twice = wanted - set(found), [step for step, count in found.items() if count > 1]
        version = "2" if arn.endswith("v2") else "1"
        print(f"  signature version {version}: {len(wanted)} steps told, {len(found)} in the file, "
              f"{len(missing)} missing, {len(twice)} twice")
        problems += [f"missing: {missing}"] * bool(missing) + [f"twice: {twice}"] * bool(twice)
    below, late, silent = order_of(audit, lambda line: line["topic"])
    print(f"  topic order: {len(audit)} lines, {below} below one before them, {late} marked late")
    problems += [f"out of order and not marked: {silent[:3]}"] * bool(silent)
    problems += ["nothing was late, so nothing was tried"] * (late == 0)
    failures = runbell.lines("failures.jsonl")
    wanted = sum(status != "Success" and step is not None for steps in told.values() for step, status in steps)
    lanes = {}
    for line in failures:
        lanes.setdefault((line["topic"], line["instance"]), []).append(line["status"])
    wrong = [lane for lane in lanes.values() if lane not in (["InProgress"], ["InProgress", "Failed"])]
    print(f"  instance order: {len(failures)} lines of {wanted}, in {len(lanes)} lanes, {len(wrong)} in the wrong order")
    problems += [f"wrong lanes: {wrong[:3]}"] * bool(wrong)
    print(f"  relay: {relay.taken} taken, {relay.copies} copied, {relay.held_back} held back, answers {relay.answers}")
    print(f"  judged: {dict(runbell.counts)}")
    good = {"accepted", "known", "repeat", "lanes rescued"}
    problems += [f"refused: {word}" for word in runbell.counts if word not in good]
    problems += ["lanes were rescued"] * (runbell.counts["lanes rescued"] > 0)
    return problems


def books_balance(runbell):
    sinks = json.loads(get(f"http://127.0.0.1:{runbell.admin}/api/v1/tally"))["sinks"]
    return [
        f"books: {sink}" for sink in sinks
        if sink["owed"] != sum(sink[key] for key in ("sent", "muted", "redundant", "dropped", "dead", "waiting"))
    ]


def main():
    binary, home = Path(sys.argv[1]), Path(sys.argv[2])
    folder = home / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = []
    try:
        print("starting LocalStack")
        localstack = LocalStack(folder)
        started.append(localstack.process)
        topics = [
            localstack.sns.create_topic(Name=f"run-command-v{version}")["TopicArn"] for version in VERSIONS
        ]
        for arn, version in zip(topics, VERSIONS):
            localstack.sns.set_topic_attributes(
                TopicArn=arn, AttributeName="SignatureVersion", AttributeValue=version
            )
        runbell = Runbell(binary, folder, localstack.base, topics)
        runbell.start()
        relay = Relay(runbell.port, seed=11)
        subscriptions = [
            localstack.sns.subscribe(TopicArn=arn, Protocol="http", Endpoint=relay.url, ReturnSubscriptionArn=True)
            for arn in topics
        ]
        confirmed = lambda: [
            one for one in runbell.ask("subscription", "list", "--json") if one["confirmed_at"]
        ]
        wait("both confirmations", 30, lambda: len(confirmed()) == len(topics))
        print(f"{len(topics)} subscriptions confirmed; publishing")
        told = publish(localstack, topics, relay, runbell)
        wait("the relay", 120, lambda: relay.open == 0)
        waiting = lambda: sum(
            sink["waiting"] for sink in json.loads(get(f"http://127.0.0.1:{runbell.admin}/api/v1/tally"))["sinks"]
        )
        wait("the deliveries", 60, lambda: waiting() == 0)
        relay.disorder = False
        for subscription in subscriptions:
            localstack.sns.unsubscribe(SubscriptionArn=subscription["SubscriptionArn"])
        ended = lambda: [line for line in runbell.lines("audit.jsonl") if line["kind"] == "unsubscribe"]
        wait("the ends of the subscriptions", 30, lambda: len(ended()) == len(topics))
        problems = books_balance(runbell)
        runbell.stop()
        problems += check(runbell, told, relay)
    finally:
        if "runbell" in locals() and runbell.process:
            started.append(runbell.process)
        for process in started:
            process.kill()
            process.wait()
    for problem in problems:
        print(f"WRONG: {problem}")
    print("interop failed" if problems else "interop passed")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
