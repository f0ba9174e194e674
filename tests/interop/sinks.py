"""Brings notices to real mail servers, a real Alertmanager and recorders in place of the services that
cannot run here, and has the vendors' own libraries judge what was sent."""

import base64
import email
import email.policy
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

from standardwebhooks import Webhook, WebhookVerificationError

import models
from common import free_port, get, wait
from sender import TOPIC, Sender
from servers import PASSWORD, USER, MailServer, Recorder, certificate

SECRETS = ["whsec_" + base64.b64encode(bytes([letter]) * 32).decode() for letter in b"ab"]
EVIL = "<!channel> @everyone [x](http://evil.example) <b>b</b> `c` \u202e=?utf-8?B?eA==?=\r\nBcc: x@example.com"
FLEET, FLEET_DOCUMENT = 40, "AWS-RunPatchBaseline"
DIGESTED = ("implicit", "slack", "slack-bot", "teams", "discord", "google-chat", "mattermost", "telegram", "ntfy")
PEOPLE = ("slack", "slack-bot", "teams", "discord", "google-chat", "mattermost", "pagerduty", "telegram", "ntfy")


def status(instance, word, document="AWS-RunShellScript", command=1, detail=None):
    return {
        "commandId": f"{command:08x}-0000-4000-8000-000000000000", "documentName": document,
        "instanceId": instance, "requestedDateTime": "2026-01-01T00:00:00Z", "status": word,
        "detailedStatus": detail or word,
        "eventTime": datetime.now(timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z",
    }


MESSAGES = [
    status("i-0aaaaaaaaaaaaaaaa", "InProgress"),
    status("i-0aaaaaaaaaaaaaaaa", "Success", command=2),
    status("i-0bbbbbbbbbbbbbbbb", "TimedOut", command=3, detail="ExecutionTimedOut"),
    status("i-0cccccccccccccccc", "Cancelled", command=4),
    status("i-0dddddddddddddddd", "Rebooting", command=5),
    status("i-0eeeeeeeeeeeeeeee", "Failed", EVIL, command=6),
    '{"AlarmName": "disk", "NewStateValue": "ALARM", "long": "' + "lorem <ipsum> & " * 6000 + '"}',
    "Störung: 温度が高すぎます 🔥\n\n* Zeile zwei\n",
    status("i-0ffffffffffffffff", "Failed", command=9, detail="NonZeroExit"),
]


def summary(word):
    told = status(None, word, FLEET_DOCUMENT, command=10)
    del told["instanceId"], told["detailedStatus"]
    return told | {
        "instanceIds": [instance(number) for number in range(FLEET)],
        "outputS3BucketName": "logs", "outputS3KeyPrefix": "ssm",
    }


def instance(number):
    return f"i-{0xabcdef * (number + 1):017x}"


def fleet_begins():
    return [summary("InProgress")] + [
        status(instance(number), "InProgress", FLEET_DOCUMENT, command=10) for number in range(FLEET)
    ]


def fleet_ends():
    how = {7: "Failed", 19: "Failed", 23: "TimedOut", 31: "Failed"}
    return [
        status(instance(number), how.get(number, "Success"), FLEET_DOCUMENT, command=10) for number in range(FLEET)
    ] + [summary("Failed")]


def settings(sender, ports, recorder, mails, alertmanager):
    base = recorder.base
    http = "http = { allow_private = true }"
    mail = "type = 'email'\nfrom = 'Runbell <runbell@example.com>'\nca = 'mail.crt'\n"
    starttls, implicit, bare = (server.port for server in mails)
    everybody = json.dumps([f"{name}@example.com" for name in ("ann", "gone", "grey")])
    one = "to = ['ann@example.com']"
    people = {
        "slack": f"url = {{ env = 'SLACK' }}", "teams": "url = { env = 'TEAMS' }",
        "discord": "url = { env = 'DISCORD' }", "google-chat": "url = { env = 'CHAT' }",
        "mattermost": "url = { env = 'MATTERMOST' }",
        "slack-bot": f"token = {{ env = 'TOKEN' }}\nchannel = 'C1'\napi = '{base}/slack-api/'",
        "pagerduty": f"url = '{base}'\nkey = {{ env = 'PAGERDUTY' }}",
        "telegram": f"url = '{base}'\ntoken = {{ env = 'TELEGRAM' }}\nchat = '-1001'",
        "ntfy": f"url = '{base}'\ntopic = {{ env = 'NTFY' }}",
    }
    chats = "".join(
        f"[sink.{name}]\ntype = '{name.removesuffix('-bot')}'\n{keys}\n{http}\n" for name, keys in people.items()
    )
    secrets = "secrets = [{ env = 'SECRET_A' }, { env = 'SECRET_B' }]"
    return f"""
[server]
listen = "127.0.0.1:{ports[0]}"
[admin]
listen = "127.0.0.1:{ports[1]}"
[store]
url = "sqlite:runbell.db"
[[topic]]
arn = "{TOPIC}"
endpoint = "{sender.base}"
[sink.starttls]
smtp = "smtp+starttls://{USER}@localhost:{starttls}"
password = {{ env = "PASSWORD" }}
to = {everybody}
{mail}
[sink.filtered]
smtp = "smtp+starttls://{USER}@localhost:{starttls}"
password = {{ env = "PASSWORD" }}
to = ["no-html@example.com"]
{mail}
[sink.implicit]
smtp = "smtps://{USER}@localhost:{implicit}"
password = {{ env = "PASSWORD" }}
{one}
{mail}
[sink.wrong-password]
smtp = "smtps://{USER}@localhost:{implicit}"
password = {{ env = "TOKEN" }}
{one}
{mail}
[sink.no-starttls]
smtp = "smtp+starttls://localhost:{bare}"
{one}
{mail}
[sink.untrusted]
smtp = "smtps://localhost:{implicit}"
{one}
{mail.replace("ca = 'mail.crt'", "")}
[sink.alertmanager]
type = "alertmanager"
url = "http://127.0.0.1:{alertmanager}"
{http}
[sink.webhook]
type = "webhook"
url = {{ env = "WEBHOOK" }}
{secrets}
{http}
{chats}
[[route]]
name = "fleet"
when = {{ document = "{FLEET_DOCUMENT}" }}
to = [{", ".join(f'"{name}"' for name in DIGESTED)}]
digest = {{ gather = "1s", every = "1h" }}
stop = true
[[route]]
name = "all"
to = ["starttls", "filtered", "implicit", "alertmanager", "webhook", {", ".join(f'"{name}"' for name in PEOPLE)}]
order = "instance"
hold = "0s"
[[route]]
name = "broken"
when = {{ status = "Failed" }}
to = ["wrong-password", "no-starttls", "untrusted"]
order = "none"
"""


def environment(recorder):
    base = recorder.base
    return {
        "PATH": os.environ["PATH"], "PASSWORD": PASSWORD, "TOKEN": "xoxb-1-wrong", "PAGERDUTY": "a" * 32,
        "TELEGRAM": "123:abc", "NTFY": "alerts", "SECRET_A": SECRETS[0], "SECRET_B": SECRETS[1],
        "WEBHOOK": f"{base}/webhook/x", "SLACK": f"{base}/slack/x", "TEAMS": f"{base}/teams/x",
        "DISCORD": f"{base}/discord/1/x", "CHAT": f"{base}/google-chat/x?key=k", "MATTERMOST": f"{base}/mattermost/x",
    }


def start_alertmanager(folder):
    config = folder / "alertmanager.yml"
    config.write_text("route:\n  receiver: nobody\nreceivers:\n- name: nobody\n")
    port = free_port()
    process = subprocess.Popen(
        ["prometheus-alertmanager", f"--config.file={config}",
         f"--storage.path={folder / 'alerts'}", f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    wait("Alertmanager", 30, lambda: get(f"http://127.0.0.1:{port}/-/ready"))
    return process, port


def check_mail(starttls, implicit):
    """Every recipient has every mail once, whatever became of the others; and every mail is sound."""
    problems = []
    count = Counter(address for to, _, _ in starttls.taken for address in to)
    print(f"  mail, STARTTLS: {len(starttls.taken)} transactions; {dict(count)}; asked {dict(starttls.asked)}")
    wanted = {"ann@example.com": len(MESSAGES), "grey@example.com": len(MESSAGES), "no-html@example.com": len(MESSAGES)}
    if count != wanted:
        problems.append(f"mail: {dict(count)} in place of {wanted}")
    print(f"  mail, implicit TLS: {len(implicit.taken)} mails")
    if not len(MESSAGES) + 2 <= len(implicit.taken) <= len(MESSAGES) + 8:
        problems.append(f"mail over implicit TLS: {len(implicit.taken)}")
    for to, content, over_tls in starttls.taken + implicit.taken:
        mail = email.message_from_bytes(content, policy=email.policy.default)
        subject = mail["subject"]
        faults = [str(defect) for part in mail.walk() for defect in part.defects]
        faults += [f"no {name}" for name in ("from", "to", "date", "message-id", "list-id") if not mail[name]]
        faults += ["answered by machines"] * (mail["auto-submitted"] != "auto-generated")
        faults += ["a header was injected"] * bool(mail["bcc"])
        faults += ["a line is too long"] * any(len(line) > 998 for line in content.split(b"\r\n"))
        faults += ["not ASCII"] * (not content.isascii())
        faults += ["over no TLS"] * (not over_tls)
        faults += ["where is not said"] * ("123456789012" not in subject)
        text = mail.get_body(("plain",))
        faults += ["no text"] * (text is None or not text.get_content().strip())
        if to != ["no-html@example.com"]:
            faults += ["no HTML"] * (mail.get_body(("html",)) is None)
        if "Failed" in subject:
            faults += ["no link"] * ("https://eu-central-1.console.aws.amazon.com/" not in text.get_content())
        problems += [f"mail `{subject}`: {fault}" for fault in faults]
    return problems


def check_webhook(calls):
    problems = []
    refused = 0
    for _, _, _, headers, body in calls:
        for secret in SECRETS:
            Webhook(secret).verify(body, headers)
        others = [
            (SECRETS[0], body[:-1] + b" ", headers),
            (SECRETS[0], body, {**headers, "webhook-timestamp": "1600000000"}),
            ("whsec_" + base64.b64encode(b"z" * 32).decode(), body, headers),
        ]
        for secret, body, said in others:
            try:
                Webhook(secret).verify(body, said)
                problems.append("standardwebhooks takes what was spoilt")
            except WebhookVerificationError:
                refused += 1
    print(f"  standardwebhooks: {len(calls)} verified under both secrets, {refused} spoilt ones refused")
    if len(calls) != len(MESSAGES):
        problems.append(f"webhook: {len(calls)} calls")
    return problems


def check_alertmanager(port):
    """It shows what fires, and refuses what is spoilt."""
    problems = []
    shown = json.loads(get(f"http://127.0.0.1:{port}/api/v2/alerts"))
    statuses = Counter(alert["annotations"]["status"] for alert in shown)
    print(f"  Alertmanager: {len(shown)} alerts fire: {dict(statuses)}")
    if statuses["Failed"] != 2 or statuses["TimedOut"] != 1 or statuses["Success"]:
        problems.append(f"Alertmanager: {shown}")
    for spoilt in ([{"labels": {}}], [{"labels": {"a b": "c"}}], [{"labels": "x"}]):
        done = subprocess.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "content-type: application/json",
             "-d", json.dumps(spoilt), f"http://127.0.0.1:{port}/api/v2/alerts"],
            capture_output=True, text=True,
        )
        if not done.stdout.startswith("4"):
            problems.append(f"Alertmanager takes {spoilt}: {done.stdout}")
    return problems


def check_broken(admin, bare):
    """Sinks that cannot work say why, keep what waits, and never fall back to less protection."""
    problems = []
    if bare.taken:
        problems.append("a mail went without TLS")
    shown = json.loads(get(f"http://127.0.0.1:{admin}/api/v1/events/{len(MESSAGES)}"))
    said = {
        delivery["sink"]: delivery["history"][0] for delivery in shown["deliveries"] if delivery["history"]
    }
    for sink, part in (("wrong-password", "does not let runbell in"), ("no-starttls", "STARTTLS"), ("untrusted", "certificate")):
        answer = said.get(sink, {}).get("answer") or ""
        print(f"  {sink}: {answer[:110]}")
        if part not in answer or said[sink]["result"] != "retry":
            problems.append(f"{sink}: {said.get(sink)}")
    return problems


def payloads(recorder):
    found = {service: [] for service in models.SPOILT}
    for service, _, path, _, body in recorder.calls:
        service = "slack" if service == "slack-api" else service
        if service in found:
            found[service].append(json.loads(body))
    # What has everything that can be spoilt comes last: a webhook's failure of one instance.
    for service, each in found.items():
        each.sort(key=lambda payload: ("channel" in payload) * -2 + ("0ffffffffffffffff" in json.dumps(payload)))
    return found


def keep(folder, sent, mails):
    """Writes down what was sent, to be looked at."""
    folder.mkdir()
    for service, each in sent.items():
        for number, payload in enumerate(each):
            (folder / f"{service}-{number:02}.json").write_text(json.dumps(payload, indent=1))
    for number, (_, content, _) in enumerate(mails.taken):
        (folder / f"mail-{number:02}.eml").write_bytes(content)


def main():
    binary, home = Path(sys.argv[1]), Path(sys.argv[2])
    here = Path(__file__).parent
    folder = home / "sinks" / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    context = certificate(folder)
    mails = [MailServer(kind, context) for kind in ("starttls", "implicit", "bare")]
    for server in mails:
        server.start()
    recorder, sender = Recorder(), Sender()
    started = []
    try:
        alertmanager, alert_port = start_alertmanager(folder)
        started.append(alertmanager)
        ports = free_port(), free_port()
        config = folder / "runbell.toml"
        config.write_text(settings(sender, ports, recorder, mails, alert_port))
        log = open(folder / "runbell.log", "w")
        runbell = subprocess.Popen(
            [binary, "serve", "--config", config], env=environment(recorder), stdout=log, stderr=log
        )
        started.append(runbell)
        wait("Runbell", 30, lambda: get(f"http://127.0.0.1:{ports[1]}/-/healthy"))
        for message in MESSAGES:
            answer = sender.post(f"http://127.0.0.1:{ports[0]}/sns", message)
            if answer != 200:
                raise SystemExit(f"a message was answered {answer}")
        for message in fleet_begins():
            sender.post(f"http://127.0.0.1:{ports[0]}/sns", message)
        digests = lambda: [body for _, _, _, _, body in recorder.of("slack") if FLEET_DOCUMENT.encode() in body]
        wait("the first digest", 60, digests)
        for message in fleet_ends():
            sender.post(f"http://127.0.0.1:{ports[0]}/sns", message)
        told = 2 * FLEET + 2
        print(f"{len(MESSAGES)} messages and {told} of a fleet accepted; waiting for {5 + len(PEOPLE)} sinks")
        broken = {"wrong-password", "no-starttls", "untrusted"}
        tally = lambda: json.loads(get(f"http://127.0.0.1:{ports[1]}/api/v1/tally"))["sinks"]
        wait("the deliveries", 120, lambda: all(
            sink["waiting"] == 0 for sink in tally() if sink["sink"] not in broken
        ))
        problems = [
            f"{sink['sink']}: {sink}" for sink in tally()
            if sink["sink"] not in broken
            and sink["sent"] != len(MESSAGES) + told * (sink["sink"] in DIGESTED)
        ]
        print(f"  a fleet of {FLEET}: {told} events in {len(digests())} digests on Slack")
        if not 2 <= len(digests()) <= 8:
            problems.append(f"{len(digests())} digests")
        starttls, implicit, bare = (server.log for server in mails)
        problems += check_mail(starttls, implicit)
        problems += check_broken(ports[1], bare)
        problems += check_webhook(recorder.of("webhook"))
        problems += check_alertmanager(alert_port)
        sent = payloads(recorder)
        keep(folder / "sent", sent, implicit)
        problems += models.judge(home, here, sent)
        runbell.terminate()
        if runbell.wait(timeout=60) != 0:
            problems.append("Runbell did not stop in order")
        told = (folder / "runbell.log").read_text()
        for secret in (PASSWORD, "xoxb-1-wrong", SECRETS[0], "a" * 32):
            problems += [f"the log holds a secret: {secret[:6]}…"] * (secret in told)
    finally:
        for process in started:
            process.kill()
            process.wait()
        for server in mails:
            server.stop()
    for problem in problems:
        print(f"WRONG: {problem}")
    print("interop with sinks failed" if problems else "interop with sinks passed")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
