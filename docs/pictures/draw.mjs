// Draws what people see: the mails and payloads that `make interop ARGS=sinks` recorded, each in the
// look of its service, by a real browser. Run by `make pictures`. The chats are drawn by small readers
// of our own that take a payload's markup as the service would, so that broken markup shows; Teams by
// Microsoft's own renderer.
//
//   node draw.mjs SENT MODULES OUT

import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const [sent, modules, out] = process.argv.slice(2);
const require = createRequire(path.resolve(modules, "package.json"));
const { chromium } = require("playwright-core");

const escaped = (text) =>
  String(text).replace(/[&<>"]/g, (each) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[each]);
const lines = (text) => text.replace(/\n/g, "<br>");

// Code is taken out first: nothing means anything in it.
function withCode(text, fence, read) {
  return text
    .split(fence)
    .map((part, at) => (at % 2 ? `<pre>${part.replace(/^\n|\n$/g, "")}</pre>` : read(part)))
    .join("");
}

// Slack's mrkdwn; what is escaped in it is escaped as in HTML.
const mrkdwn = (text) =>
  withCode(text, "```", (part) =>
    lines(
      part
        .replace(/<(https?:[^|>]+)\|([^>]+)>/g, '<a href="$1">$2</a>')
        .replace(/<([@!][^>]+)>/g, '<mark>$1</mark>')
        .replace(/(^|[\s(])\*([^*\n]+)\*/g, "$1<b>$2</b>")
        .replace(/(^|[\s(])_([^_\n]+)_/g, "$1<i>$2</i>")
        .replace(/`([^`\n]+)`/g, "<code>$1</code>"),
    ),
  );

// An element of Slack's rich text.
function rich({ type, text, url, style }) {
  let shown = lines(escaped(text));
  if (type === "link") shown = `<a href="${escaped(url)}">${shown}</a>`;
  if (style?.bold) shown = `<b>${shown}</b>`;
  return style?.italic ? `<i>${shown}</i>` : shown;
}

// Markdown as Discord and Mattermost read it, mentions and all.
function markdown(text) {
  return withCode(text, "```", (part) => {
    const kept = [];
    const plain = part.replace(/\\([\\*_~`|><#[\]()!&])/g, (_, each) => `\u0001${kept.push(each) - 1}\u0002`);
    return lines(
      escaped(plain)
        .replace(/\[([^\]]+)\]\((https?:[^)]+)\)/g, '<a href="$2">$1</a>')
        .replace(/@(everyone|here|channel|all)\b/g, "<mark>@$1</mark>")
        .replace(/\*\*([^*]+)\*\*/g, "<b>$1</b>")
        .replace(/\*([^*\n]+)\*/g, "<i>$1</i>")
        .replace(/`([^`\n]+)`/g, "<code>$1</code>"),
    ).replace(/\u0001(\d+)\u0002/g, (_, at) => escaped(kept[at]));
  });
}

const row = (name, colour, body) =>
  `<div class="row"><div class="face" style="background:${colour}">R</div><div><b class="who">Runbell</b>
   <span class="app">APP</span> <span class="at">10:02</span>${name}${body}</div></div>`;
const hex = (number) => `#${number.toString(16).padStart(6, "0")}`;

const draw = {
  slack: (payload) =>
    row("", "#4a154b", payload.text ? `<p>${mrkdwn(payload.text)}</p>` : "") +
    payload.attachments.map((it) =>
      `<div class="bar" style="border-color:${it.color}">${it.blocks.flatMap((block) => block.elements)
        .map((part) => part.type === "rich_text_preformatted"
          ? `<pre>${part.elements.map(rich).join("")}</pre>`
          : `<p>${part.elements.map(rich).join("")}</p>`).join("")}</div>`).join(""),
  discord: (payload) =>
    row("", "#5865f2", payload.content ? `<p>${markdown(payload.content)}</p>` : "") +
    payload.embeds.map((it) =>
      `<div class="embed" style="border-color:${hex(it.color)}"><p><a href="${it.url ?? ""}"><b>${markdown(it.title)}</b></a></p>
       <p>${markdown(it.description ?? "")}</p><div class="fields">${(it.fields ?? [])
         .map((field) => `<div class="${field.inline ? "third" : "whole"}"><b>${escaped(field.name)}</b><br>${markdown(field.value)}</div>`)
         .join("")}</div>${it.footer ? `<small>${escaped(it.footer.text)}</small>` : ""}</div>`).join(""),
  mattermost: (payload) =>
    row("", "#1e325c", payload.text ? `<p>${markdown(payload.text)}</p>` : "") +
    payload.attachments.map((it) =>
      `<div class="bar" style="border-color:${it.color}"><p><a href="${it.title_link ?? ""}"><b>${markdown(it.title)}</b></a></p>
       <p>${markdown(it.text ?? "")}</p><div class="fields">${(it.fields ?? [])
         .map((field) => `<div class="${field.short ? "half" : "whole"}"><b>${escaped(field.title)}</b><br>${markdown(String(field.value))}</div>`)
         .join("")}</div></div>`).join(""),
  telegram: (payload) => `<div class="bubble">${lines(payload.text)}<span class="at">10:02</span></div>`,
  "google-chat": (payload) =>
    row("", "#188038", "") +
    payload.cardsV2.map(({ card }) =>
      `<div class="card"><h4>${escaped(card.header.title)}</h4>${card.sections[0].widgets
        .map((it) => it.buttonList
          ? it.buttonList.buttons.map((button) => `<a class="button" href="${button.onClick.openLink.url}">${escaped(button.text)}</a>`).join("")
          : `<div class="decorated"><small>${escaped(it.decoratedText.topLabel)}</small><br>${it.decoratedText.text}</div>`)
        .join("")}</div>`).join(""),
  teams: (payload) => row("", "#4f52b2", "") +
    `<div class="card teams" data-card="${escaped(JSON.stringify(payload.attachments[0].content))}"></div>`,
};

const looks = {
  slack: "body{background:#fff;color:#1d1c1d} a{color:#1264a3} pre{background:#f8f8f8;border:1px solid #ddd}",
  discord: "body{background:#313338;color:#dbdee1} a{color:#00a8fc} pre{background:#2b2d31} .embed{background:#2b2d31}",
  mattermost: "body{background:#fff;color:#3f4350} a{color:#386fe5} pre{background:#f5f5f6}",
  telegram: "body{background:#8fb7a3} .bubble{background:#fff} a{color:#168acd} pre{background:#eef3f6}",
  "google-chat": "body{background:#fff;color:#1f1f1f} a{color:#0b57d0} .card{border:1px solid #dadce0}",
  teams: "body{background:#f5f5f5;color:#242424} .card{background:#fff;border:1px solid #e0e0e0}",
};
const style = `*{box-sizing:border-box} body{margin:0;padding:14px;width:640px;font:15px/1.42 "DejaVu Sans",sans-serif;font-size:14px}
 p{margin:4px 0} pre{white-space:pre-wrap;word-break:break-all;padding:7px;border-radius:5px;font-size:12px;margin:4px 0}
 .row{display:flex;gap:10px;margin-top:14px} .face{width:34px;height:34px;border-radius:7px;color:#fff;font-weight:bold;display:flex;align-items:center;justify-content:center}
 .app{font-size:10px;background:#8884;border-radius:3px;padding:1px 3px} .at{opacity:.6;font-size:11px}
 .bar,.embed,.card{margin:4px 0 0 44px;overflow-wrap:anywhere} .bar{border-left:4px solid;padding-left:11px}
 .embed{border-left:4px solid;border-radius:4px;padding:8px 14px;max-width:520px} .fields{display:flex;flex-wrap:wrap;gap:8px 0;font-size:13px}
 .third{width:33%} .half{width:50%} .whole{width:100%} .third,.half{padding-right:8px}
 .card{border-radius:9px;padding:12px 14px} h4{margin:0 0 8px} .decorated{padding:4px 0} small{opacity:.7;font-size:11px}
 .button{display:inline-block;margin-top:6px;font-weight:bold;text-decoration:none}
 .bubble{border-radius:12px;padding:9px 12px;margin-top:10px;max-width:520px;overflow-wrap:anywhere} mark{background:#fbc02d}`;

const all = fs.readdirSync(sent);
const read = (name) => fs.readFileSync(path.join(sent, name), "utf8");
// What is shown: a failure of one instance, a closing digest, and a message that tries to be more.
const wanted = [/0ffffffffffffffff/, /Failed: AWS-RunPatchBaseline: 36/, /evil\.example/];

function chosen(service) {
  const files = all.filter((name) => name.startsWith(`${service}-`)).map(read);
  return wanted.map((what) => files.findLast((text) => what.test(text) && !/"channel": "C1"|"chat.update"/.test(text)))
    .filter(Boolean).map((text) => JSON.parse(text));
}

// The HTML part of a mail; quoted-printable, as it was sent.
function html(mail) {
  const part = mail.split(/\r?\n--/).find((each) => /content-type: text\/html/i.test(each));
  const body = part.slice(part.search(/\r?\n\r?\n/)).trim();
  const bytes = body.replace(/=\r?\n/g, "").replace(/=([0-9A-F]{2})/g, (_, code) => String.fromCharCode(parseInt(code, 16)));
  return Buffer.from(bytes, "latin1").toString("utf8");
}

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
async function picture(name, width, content, scheme = "light", after = async () => {}) {
  const page = await browser.newPage({ viewport: { width, height: 200 }, colorScheme: scheme });
  await page.setContent(content);
  await after(page);
  await page.screenshot({ path: path.join(out, `${name}.png`), fullPage: true });
  await page.close();
}

const mails = all.filter((name) => name.endsWith(".eml")).map(read).map(html);
for (const [name, what] of [["failed", wanted[0]], ["digest", wanted[1]], ["hostile", wanted[2]]]) {
  const mail = mails.findLast((text) => what.test(text));
  await picture(`mail-${name}`, 390, mail);
  await picture(`mail-${name}-dark`, 390, mail, "dark");
}
for (const [service, look] of Object.entries(looks)) {
  const body = chosen(service).map(draw[service]).join("");
  const page = `<!doctype html><meta charset="utf-8"><style>${style}${look}</style><body>${body}`;
  await picture(service, 640, page, "light", async (page) => {
    if (service !== "teams") return;
    await page.addScriptTag({ path: require.resolve("adaptivecards/dist/adaptivecards.js") });
    await page.evaluate(() => {
      for (const place of document.querySelectorAll(".teams")) {
        const card = new AdaptiveCards.AdaptiveCard();
        card.hostConfig = new AdaptiveCards.HostConfig({ fontFamily: "DejaVu Sans", spacing: { small: 3, padding: 0 } });
        card.parse(JSON.parse(place.dataset.card));
        place.append(card.render());
      }
    });
  });
}
await browser.close();
