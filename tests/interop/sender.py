"""Stands in for SNS: signs messages with a key of its own, serves the certificate, posts."""

import base64
import http.server
import json
import threading
import urllib.request
import uuid
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

TOPIC = "arn:aws:sns:eu-central-1:123456789012:run-command"


class Sender:
    def __init__(self):
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
        now = datetime.now(timezone.utc)
        certificate = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name)
            .public_key(self.key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=30))
            .sign(self.key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)

        class Certificates(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("content-length", str(len(pem)))
                self.end_headers()
                self.wfile.write(pem)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Certificates)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.base = f"http://127.0.0.1:{server.server_address[1]}"

    def sign(self, message, subject="EC2 Run Command Notification eu-central-1"):
        """A message as SNS would post it: its id, the headers and the body."""
        moment = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        signed = {
            "Message": message if isinstance(message, str) else json.dumps(message),
            "MessageId": str(uuid.uuid4()),
            "Subject": subject,
            "Timestamp": moment,
            "TopicArn": TOPIC,
            "Type": "Notification",
        }
        text = "".join(f"{key}\n{value}\n" for key, value in signed.items())
        signature = self.key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        envelope = signed | {
            "SignatureVersion": "2",
            "Signature": base64.b64encode(signature).decode(),
            "SigningCertURL": f"{self.base}/SimpleNotificationService-{'a' * 32}.pem",
            "UnsubscribeURL": f"{self.base}/?Action=Unsubscribe",
        }
        headers = {
            "content-type": "text/plain; charset=UTF-8", "x-amz-sns-message-type": "Notification",
            "x-amz-sns-topic-arn": TOPIC, "x-amz-sns-message-id": signed["MessageId"],
        }
        return signed["MessageId"], headers, json.dumps(envelope).encode()

    def post(self, url, message):
        """Posts a message as SNS would; says the status of the answer."""
        _, headers, body = self.sign(message)
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=15) as answer:
            return answer.status
