//! A message's fields, taken in one pass over its JSON, in whatever spelling of keys it came.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// What of a JSON object is looked at. Absent, empty, and of another type than expected is `None`.
#[derive(Debug, Default)]
pub(super) struct Message<'a> {
    pub(super) command_id: Field<'a>,
    pub(super) document_name: Field<'a>,
    pub(super) instance_id: Field<'a>,
    /// Present as a list, be it empty.
    pub(super) instance_ids: Option<Vec<Cow<'a, str>>>,
    pub(super) requested_date_time: Field<'a>,
    pub(super) expires_after: Field<'a>,
    pub(super) bucket: Field<'a>,
    pub(super) prefix: Field<'a>,
    pub(super) status: Field<'a>,
    pub(super) detailed_status: Field<'a>,
    pub(super) event_time: Field<'a>,
    pub(super) detail_type: Field<'a>,
    pub(super) source: Field<'a>,
    pub(super) time: Field<'a>,
    pub(super) detail: Option<&'a RawValue>,
    pub(super) has_alarm_name: bool,
    pub(super) has_new_state: bool,
    /// A key that only summaries have is there, whatever its value.
    pub(super) is_summary: bool,
}

/// A text that may be absent. AWS's own spelling wins over another one of the same key.
#[derive(Debug, Default)]
pub(super) struct Field<'a> {
    text: Option<Cow<'a, str>>,
    exact: bool,
}

impl<'a> Field<'a> {
    fn put(&mut self, value: Value<'a>, exact: bool) {
        if (self.text.is_none() || (exact && !self.exact))
            && let Value::Text(text) = value
            && !text.is_empty()
        {
            self.text = Some(text);
            self.exact = exact;
        }
    }

    pub(super) fn get(&self) -> Option<&str> {
        self.text.as_deref()
    }

    pub(super) fn owned(&self) -> Option<String> {
        self.get().map(str::to_owned)
    }
}

impl<'a> Message<'a> {
    /// Takes the fields of a JSON object; `None` when the text is none.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

enum Value<'a> {
    Text(Cow<'a, str>),
    List(Vec<Cow<'a, str>>),
    Other,
}

impl<'de> Deserialize<'de> for Message<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Message<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut it = Message::default();
        while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
            let (name, exact) = name(&key);
            let field = match name {
                "commandid" => &mut it.command_id,
                "documentname" => &mut it.document_name,
                "instanceid" => &mut it.instance_id,
                "requesteddatetime" => &mut it.requested_date_time,
                "expiresafter" | "expireafter" => {
                    it.is_summary = true;
                    &mut it.expires_after
                }
                "outputs3bucketname" => {
                    it.is_summary = true;
                    &mut it.bucket
                }
                "outputs3keyprefix" => {
                    it.is_summary = true;
                    &mut it.prefix
                }
                "status" => &mut it.status,
                "detailedstatus" => &mut it.detailed_status,
                "eventtime" => &mut it.event_time,
                "detailtype" => &mut it.detail_type,
                "source" => &mut it.source,
                "time" => &mut it.time,
                "instanceids" => {
                    if let Value::List(list) = map.next_value()? {
                        it.is_summary = true;
                        it.instance_ids.get_or_insert(list);
                    }
                    continue;
                }
                "detail" => {
                    it.detail = Some(map.next_value()?);
                    continue;
                }
                "alarmname" => {
                    it.has_alarm_name = true;
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                "newstatevalue" => {
                    it.has_new_state = true;
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            field.put(map.next_value()?, exact);
        }
        Ok(it)
    }
}

/// The keys that are looked at, as AWS spells them, beside what all their spellings come down to.
const KEYS: [(&str, &str); 18] = [
    ("commandId", "commandid"),
    ("documentName", "documentname"),
    ("instanceId", "instanceid"),
    ("instanceIds", "instanceids"),
    ("requestedDateTime", "requesteddatetime"),
    ("expiresAfter", "expiresafter"),
    ("outputS3BucketName", "outputs3bucketname"),
    ("outputS3KeyPrefix", "outputs3keyprefix"),
    ("status", "status"),
    ("detailedStatus", "detailedstatus"),
    ("eventTime", "eventtime"),
    ("detail-type", "detailtype"),
    ("source", "source"),
    ("time", "time"),
    ("detail", "detail"),
    ("AlarmName", "alarmname"),
    ("NewStateValue", "newstatevalue"),
    ("expire-after", "expireafter"),
];

/// What a key comes down to, and whether it is AWS's own spelling. Unknown keys come down to "".
fn name(key: &str) -> (&'static str, bool) {
    if let Some((_, name)) = KEYS.iter().find(|(exact, _)| *exact == key) {
        return (name, true);
    }
    let same = |name: &str| {
        let letters = key.bytes().filter(|byte| *byte != b'-');
        letters
            .map(|byte| byte.to_ascii_lowercase())
            .eq(name.bytes())
    };
    let found = KEYS.iter().find(|(_, name)| same(name));
    (found.map_or("", |(_, name)| name), false)
}

struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text).map(Self)
    }
}

struct Text;

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while let Some(value) = seq.next_element()? {
            if let Value::Text(text) = value {
                texts.push(text);
            }
        }
        Ok(Value::List(texts))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }
}
