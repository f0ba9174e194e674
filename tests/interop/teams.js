// Microsoft's own renderer reads cards: what it loses or objects to is printed, a line each.
const fs = require("fs");
const { AdaptiveCard, SerializationContext, Versions } = require("adaptivecards/dist/adaptivecards.js");

// Of Teams, and not of Adaptive Cards: https://learn.microsoft.com, "full width Adaptive Card".
const OF_TEAMS = new Set(["msteams"]);

function lost(given, kept, path) {
  if (Array.isArray(given)) {
    if (!Array.isArray(kept) || kept.length !== given.length) return [`${path}: not kept`];
    return given.flatMap((each, at) => lost(each, kept[at], `${path}[${at}]`));
  }
  if (given !== null && typeof given === "object") {
    return Object.entries(given)
      .filter(([key]) => !OF_TEAMS.has(key) && key !== "$schema")
      .flatMap(([key, value]) =>
        kept === undefined || kept === null || kept[key] === undefined
          ? defaults(key, value) ? [] : [`${path}.${key}: not known`]
          : lost(value, kept[key], `${path}.${key}`));
  }
  // Words of the schema are read in any case.
  const same = given === kept || String(given).toLowerCase() === String(kept).toLowerCase();
  return same ? [] : [`${path}: ${JSON.stringify(given)} became ${JSON.stringify(kept)}`];
}

// What has its default value is left out when a card is written again.
const defaults = (key, value) => value === false || value === "default" || (key === "wrap" && value === true);

for (const file of process.argv.slice(2)) {
  const message = JSON.parse(fs.readFileSync(file, "utf8"));
  const found = [];
  const attachment = message.attachments && message.attachments[0];
  if (message.type !== "message" || !attachment) found.push("no message with an attachment");
  else if (attachment.contentType !== "application/vnd.microsoft.card.adaptive") found.push("no adaptive card");
  else {
    const card = new AdaptiveCard();
    const context = new SerializationContext(Versions.v1_5);
    card.parse(attachment.content, context);
    for (let at = 0; at < context.eventCount; at++) found.push(context.getEventAt(at).message);
    const validation = card.validateProperties();
    for (const each of validation.validationEvents) found.push(each.message);
    found.push(...lost(attachment.content, card.toJSON(), "card"));
  }
  if (Buffer.byteLength(JSON.stringify(message)) > 28 * 1024) found.push("larger than 28 KB");
  for (const each of found) console.log(`${file}: ${each}`);
}
