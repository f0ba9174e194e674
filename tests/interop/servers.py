"""Servers that take what the sinks send: mail with faults by recipient, and a recorder for HTTP."""

import collections
import http.server
import json
import ssl
import subprocess
import threading

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

from common import free_port

# aiosmtpd asks "User Name" and a NUL; servers in the field ask this.
SMTP.AuthLoginUsernameChallenge = "Username:"
SMTP.AuthLoginPasswordChallenge = "Password:"
USER, PASSWORD = "runbell", "correct horse"


def certificate(folder):
    """A certificate for localhost that vouches for itself."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "mail.key", "-out", folder / "mail.crt"],
        check=True, capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "mail.crt", folder / "mail.key")
    return context


class MailHandler:
    """The part of an address before the @ chooses what becomes of it."""

    def __init__(self):
        self.taken = []
        self.asked = collections.Counter()

    async def handle_RCPT(self, server, session, envelope, address, options):
        name = address.split("@")[0]
        self.asked[name] += 1
        if name == "gone":
            return "550 5.1.1 nobody of that name"
        if name == "grey" and self.asked[name] == 1:
            return "451 4.7.1 come again"
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_DATA(self, server, session, envelope):
        if b"no-html" in envelope.content and b"text/html" in envelope.content:
            return "554 5.7.1 this looks like spam"
        over_tls = session.ssl is not None or getattr(server, "is_implicit", False)
        self.taken.append((list(envelope.rcpt_tos), envelope.content, over_tls))
        return "250 2.0.0 queued"


def authenticate(server, session, envelope, mechanism, data):
    right = (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=right, handled=right)


class MailServer(Controller):
    """`kind`: starttls (wanted, and AUTH), implicit (TLS from the start, and AUTH), bare (neither)."""

    def __init__(self, kind, context):
        self.kind, self.context = kind, context
        self.log = MailHandler()
        super().__init__(self.log, hostname="127.0.0.1", port=free_port(),
                         ssl_context=context if kind == "implicit" else None)

    def factory(self):
        options = {} if self.kind == "bare" else {"authenticator": authenticate, "auth_required": True}
        if self.kind == "starttls":
            options |= {"tls_context": self.context, "require_starttls": True}
        if self.kind == "implicit":
            options["auth_require_tls"] = False
        server = SMTP(self.handler, **options)
        server.is_implicit = self.kind == "implicit"
        return server


ANSWERS = {
    "slack": "ok", "slack-api": {"ok": True, "channel": "C1", "ts": "1.5"}, "discord": {"id": "99"},
    "google-chat": {"name": "spaces/a/messages/b"}, "mattermost": "ok", "teams": "",
    "pagerduty": {"status": "success", "dedup_key": "x", "message": "ok"},
    "telegram": {"ok": True, "result": {"message_id": 7}}, "ntfy": {"id": "n1"}, "webhook": "",
}


class Recorder:
    """Takes every call; the first part of the path says for which service it stands."""

    def __init__(self):
        self.calls = []
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def take(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                first = self.path.split("/")[1].split("?")[0]
                service = "telegram" if first.startswith("bot") else {"v2": "pagerduty", "": "ntfy"}.get(first, first)
                recorder.calls.append((service, self.command, self.path, dict(self.headers), body))
                answer = ANSWERS.get(service, "")
                answer = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(202 if service in ("pagerduty", "teams") else 200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_PATCH = do_PUT = take

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.base = f"http://127.0.0.1:{server.server_address[1]}"

    def of(self, service):
        return [call for call in self.calls if call[0] == service]
