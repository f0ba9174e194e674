"""Stands between the emulator and Runbell and behaves as SNS does on a bad day: answers at once, then
delivers the very same bytes late, in disorder, some of them twice, and again until they are taken."""

import http.client
import random
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RETRY_AFTER = 0.5
GIVE_UP_AFTER = 90


class Relay:
    def __init__(self, port, seed):
        self.port = port  # of Runbell
        self.dice = random.Random(seed)
        self.lock = threading.Lock()
        self.disorder = False
        self.taken = 0
        self.copies = 0
        self.held_back = 0
        self.answers = {}
        self.open = 0
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()
                relay.take(body, dict(self.headers))

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, body, headers):
        with self.lock:
            self.taken += 1
            delays = [0.0]
            if self.disorder:
                delays = [self.dice.uniform(0, 3)]
                if self.dice.random() < 0.02:
                    delays = [9.0]
                    self.held_back += 1
                if self.dice.random() < 0.08:
                    delays.append(self.dice.uniform(0, 6))
                    self.copies += 1
            self.open += len(delays)
        for delay in delays:
            threading.Thread(target=self.deliver, args=(body, headers, delay), daemon=True).start()

    def deliver(self, body, headers, delay):
        time.sleep(delay)
        sent = {
            key: value
            for key, value in headers.items()
            if key.lower().startswith("x-amz-") or key.lower() in ("content-type", "user-agent")
        }
        until = time.monotonic() + GIVE_UP_AFTER
        while time.monotonic() < until:
            status = self.post(body, sent)
            with self.lock:
                self.answers[status] = self.answers.get(status, 0) + 1
            if status is not None and status < 500:
                break
            time.sleep(RETRY_AFTER)
        with self.lock:
            self.open -= 1

    def post(self, body, headers):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=15, context=context)
        try:
            connection.request("POST", "/sns", body, headers)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
