"""What the vendors' own libraries say of payloads. Each model gives the faults of a payload, and each
must be seen to find fault with payloads that were spoilt: a model that takes everything shows nothing."""

import copy
import html.parser
import json
import logging
import subprocess

from google.apps import chat_v1
from google.protobuf import json_format
from slack_sdk.models.blocks import Block

logging.disable(logging.ERROR)


def kept(given, parsed, path):
    """What a parse dropped or changed."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(parsed, dict) or key not in parsed:
                yield f"{path}.{key}: not known"
            else:
                yield from kept(value, parsed[key], f"{path}.{key}")
    elif isinstance(given, list):
        if not isinstance(parsed, list) or len(parsed) != len(given):
            yield f"{path}: not kept"
        else:
            for index, pair in enumerate(zip(given, parsed)):
                yield from kept(*pair, f"{path}[{index}]")


def slack(payload):
    blocks = payload["attachments"][0]["blocks"] if "attachments" in payload else []
    if not blocks and not payload.get("text"):
        yield "no text"
    if len(json.dumps(payload, ensure_ascii=False)) > 13_000:
        yield "longer than Slack was seen to take"
    for index, block in enumerate(blocks):
        try:
            parsed = Block.parse(block)
            parsed.validate_json()
            yield from kept(block, parsed.to_dict(), f"blocks[{index}]")
        except Exception as error:  # the models raise several kinds
            yield f"blocks[{index}]: {error}"


def google_chat(payload):
    try:
        json_format.ParseDict(payload, chat_v1.Message.pb(chat_v1.Message()))
    except json_format.ParseError as error:
        yield str(error)
    if len(json.dumps(payload, ensure_ascii=False).encode()) > 32_000:
        yield "larger than 32,000 bytes"
    if not payload.get("text") and not payload.get("cardsV2"):
        yield "no text"


def discord(payload):
    """What the types cannot say."""
    for embed in payload.get("embeds", []):
        sizes = [(embed.get("title", ""), 256), (embed.get("description", ""), 4096)]
        sizes += [(embed.get("footer", {}).get("text", ""), 2048)]
        for field in embed.get("fields", []):
            sizes += [(str(field.get("name")), 256), (str(field.get("value")), 1024)]
            if not field.get("name") or not field.get("value"):
                yield "an empty field"
        for text, most in sizes:
            if len(text) > most:
                yield f"longer than {most}: {text[:20]}"
        if sum(len(text) for text, _ in sizes) > 6000 or len(embed.get("fields", [])) > 25:
            yield "too much in an embed"
    if len(payload.get("content", "")) > 2000:
        yield "content is too long"


def pagerduty(payload):
    if len(payload.get("routing_key", "")) != 32:
        yield "routing_key has not 32 characters"
    if len(payload["payload"].get("summary", "")) > 1024 or not payload["payload"].get("summary"):
        yield "summary is empty or too long"
    if len(payload.get("dedup_key", "")) > 255:
        yield "dedup_key is too long"
    if len(json.dumps(payload)) > 512_000:
        yield "too large"


class TelegramText(html.parser.HTMLParser):
    """The tags that the Bot API knows, closed as they were opened; what is left is the text."""

    KNOWN = {"b", "i", "u", "s", "a", "code", "pre", "blockquote", "tg-spoiler"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in self.KNOWN:
            self.faults.append(f"unknown tag {tag}")
        self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"{tag} was not open")

    def handle_data(self, data):
        self.text += data


def telegram(payload):
    text = TelegramText()
    text.feed(payload["text"])
    yield from text.faults
    if text.open:
        yield f"left open: {text.open}"
    if not 1 <= len(text.text.encode("utf-16-le")) // 2 <= 4096:
        yield "empty or longer than 4,096"


def ntfy(payload):
    known = {"topic", "title", "message", "priority", "tags", "click"}
    yield from (f"unknown key {key}" for key in payload.keys() - known)
    if len(payload["message"].encode()) > 4096:
        yield "longer than 4,096 bytes: it would become an attachment"
    if payload["priority"] not in range(1, 6):
        yield "priority is 1 to 5"


def mattermost(payload):
    if len(json.dumps(payload, ensure_ascii=False)) > 16_383:
        yield "longer than 16,383 characters"
    known = {"fallback", "color", "title", "title_link", "text", "fields"}
    for attachment in payload.get("attachments", []):
        yield from (f"unknown key {key}" for key in attachment.keys() - known)
        for field in attachment.get("fields", []):
            if set(field) != {"title", "value", "short"} or not isinstance(field["short"], bool):
                yield f"no field: {field}"


TYPES = {
    "slack": ("@slack/webhook", "IncomingWebhookSendArguments"),
    "discord": ("discord-api-types/v10", "RESTPostAPIWebhookWithTokenJSONBody"),
    "pagerduty": ("@pagerduty/pdjs/build/src/events", "EventPayloadV2"),
    "telegram": ("@grammyjs/types", 'Parameters<ApiMethods<string>["sendMessage"]>[0]'),
}


def by_types(home, payloads):
    """The TypeScript types under --strict: a set of the names of payloads that they object to."""
    folder = home / "node" / "payloads"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, (service, payload) in payloads.items():
        package, kind = TYPES[service]
        imported = "ApiMethods" if "ApiMethods" in kind else kind
        (folder / f"{name}.ts").write_text(
            f'import type {{ {imported} }} from "{package}";\n'
            f"const payload: {kind} = {json.dumps(payload)};\nexport default payload;\n"
        )
    done = subprocess.run(
        ["node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--target", "es2022",
         "--module", "node16", "--moduleResolution", "node16", *sorted(f"payloads/{name}.ts" for name in payloads)],
        cwd=home / "node", capture_output=True, text=True,
    )
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("payloads/"):
            found.setdefault(line[len("payloads/"):].split(".ts(")[0], line)
        elif line.startswith("error"):
            raise SystemExit(line)
    return found


def by_renderer(home, here, payloads):
    """Microsoft's renderer: the names of payloads that it objects to."""
    folder = home / "node" / "cards"
    folder.mkdir(exist_ok=True)
    for name, payload in payloads.items():
        (folder / f"{name}.json").write_text(json.dumps(payload))
    script = home / "node" / "teams.js"
    script.write_text((here / "teams.js").read_text())
    done = subprocess.run(
        ["node", script, *(folder / f"{name}.json" for name in payloads)],
        capture_output=True, text=True, check=True,
    )
    found = {}
    for line in done.stdout.splitlines():
        path, fault = line.split(".json: ", 1)
        found.setdefault(path.rsplit("/", 1)[1], fault)
    return found


def spoilt(payload, path, value):
    """A copy with something else, or nothing, in one place."""
    copied = copy.deepcopy(payload)
    place = copied
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copied


BLOCK = ["attachments", 0, "blocks", 0]
CARD = ["attachments", 0, "content"]
SPOILT = {
    "slack": [(BLOCK + ["elements", 0, "type"], "rich_text_sektion"), (BLOCK + ["type"], "sektion"),
              (BLOCK + ["elements", 0, "elements", 0, "text"], 7), (BLOCK + ["txet"], {"a": 1})],
    "discord": [(["embeds", 0, "fields", 0, "value"], ""), (["embeds", 0, "titel"], "x"),
                (["embeds", 0, "color"], "red"), (["embeds", 0, "description"], "x" * 4097)],
    "pagerduty": [(["event_action"], "shout"), (["payload", "severity"], "awful"), (["routing_key"], "short")],
    "google-chat": [(["cardsV2", 0, "card", "heading"], {}), (["thread"], "t"), (["text"], "x" * 33_000)],
    "telegram": [(["text"], "<b>open"), (["text"], "<h1>no</h1>"), (["text"], "x" * 4097), (["parse_mode"], "HTLM")],
    "teams": [(CARD + ["body", 0, "type"], "TextBlok"), (CARD + ["version"], "9.9"), (["attachments"], None)],
    "ntfy": [(["priority"], 9), (["message"], "x" * 5000), (["prio"], 1)],
    "mattermost": [(["attachments", 0, "txt"], "x"), (["attachments", 0, "text"], "x" * 17_000),
                   (["attachments", 0, "fields", 0, "short"], "yes")],
}
BY_HAND = {
    "slack": slack, "discord": discord, "pagerduty": pagerduty, "google-chat": google_chat,
    "telegram": telegram, "ntfy": ntfy, "mattermost": mattermost,
}


def judge(home, here, payloads):
    """Faults of real payloads, by service, and of models that find no fault with spoilt ones."""
    problems = []
    named, cards, spoilt_names = {}, {}, set()
    for service, found in payloads.items():
        if not found:
            problems.append(f"{service}: nothing was sent")
            continue
        good = {f"{service}-{number}": payload for number, payload in enumerate(found)}
        # The last is a failure of one instance: it has everything that can be spoilt.
        bad = {
            f"{service}-spoilt-{number}": spoilt(found[-1], *change)
            for number, change in enumerate(SPOILT[service])
        }
        spoilt_names |= bad.keys()
        for name, payload in (good | bad).items():
            named[name] = (service, payload)
        if service == "teams":
            cards = good | bad
    typed = {}
    for name, (service, payload) in named.items():
        # Bots say more than webhooks, and change events have a form of their own; `client` is in the
        # documentation of events and not in their types.
        is_bot, is_change = "channel" in payload, service == "pagerduty" and "event_action" not in payload
        if service in TYPES and not is_bot and not is_change:
            own = {key: value for key, value in payload.items() if (service, key) != ("pagerduty", "client")}
            typed[name] = (service, own)
    faults = by_types(home, typed) | by_renderer(home, here, cards)
    for name, (service, payload) in named.items():
        if service in BY_HAND and name not in faults:
            fault = next(iter(BY_HAND[service](payload)), None)
            if fault:
                faults[name] = fault
    for name in named:
        if name in spoilt_names and name not in faults:
            problems.append(f"{name}: no model finds fault with it")
        if name not in spoilt_names and name in faults:
            problems.append(f"{name}: {faults[name]}")
    for service, found in payloads.items():
        print(f"  {service}: {len(found)} payloads taken, {len(SPOILT[service])} spoilt ones refused")
    return problems
