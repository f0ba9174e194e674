//! Settings with much wrong at once, and to the letter what is said about them.

use super::parse;

/// What `text` is said to be wrong with, as a person reads it.
fn said(text: &str) -> String {
    parse(text).map(|_| ()).unwrap_err().render(false)
}

#[test]
fn everything_wrong_is_said_at_once_with_its_place() {
    let text = "\
[sever]
[server]
listen = 'everywhere'
pth = '/sns'
max_connections = 'many'
auth = [{ user = 'a:b', password = { env = 'UNSET' } }]
[store]
url = 'mysql:db'
retention = '1h'
[[topic]]
arn = 'arn:aws:sqs:eu-central-1:123456789012:q'
endpoint = 'localhost:4566'
[[topic]]
[sink.a]
type = 'fle'
[sink.b]
type = 'file'
path = '/x/{dat}'
mod = '0640'
[[route]]
name = 'r'
to = ['aa', 'b']
hold = '2h'
when = { kind = [], sttus = 'Failed' }
";
    assert_eq!(said(text), SAID);
}

const SAID: &str = r#"error: there is no section `sever`: did you mean `server`?
 --> runbell.toml:1:2
  |
1 | [sever]
  |  ^^^^^

error: this is no address with a port: write it like `0.0.0.0:8443` or `[::]:8443`
 --> runbell.toml:3:10
  |
3 | listen = 'everywhere'
  |          ^^^^^^^^^^^^

error: there is no key `pth` here: did you mean `path`?
 --> runbell.toml:4:1
  |
4 | pth = '/sns'
  | ^^^

error: invalid type: string "many", expected a whole number
 --> runbell.toml:5:19
  |
5 | max_connections = 'many'
  |                   ^^^^^^

error: without TLS passwords go over the wire in the clear: set `tls`, or `behind_proxy = true` when a TLS proxy stands before this listener
 --> runbell.toml:6:8
  |
6 | auth = [{ user = 'a:b', password = { env = 'UNSET' } }]
  |        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^

error: a user has a name, without a colon
 --> runbell.toml:6:18
  |
6 | auth = [{ user = 'a:b', password = { env = 'UNSET' } }]
  |                  ^^^^^

error: the variable `UNSET` is not set
 --> runbell.toml:6:36
  |
6 | auth = [{ user = 'a:b', password = { env = 'UNSET' } }]
  |                                    ^^^^^^^^^^^^^^^^^

error: this is no database that is known: write `sqlite:/path/to/runbell.db`, or a URL that begins with `postgres://`
 --> runbell.toml:8:7
  |
8 | url = 'mysql:db'
  |       ^^^^^^^^^^

error: events have to be kept for 1h 30m at least: so long a replay must be known, and so long something is held
 --> runbell.toml:9:13
  |
9 | retention = '1h'
  |             ^^^^

error: this is no topic's ARN: it looks like `arn:aws:sns:eu-central-1:123456789012:run-command`
  --> runbell.toml:11:7
   |
11 | arn = 'arn:aws:sqs:eu-central-1:123456789012:q'
   |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^

error: this is no base URL: it looks like `http://localhost:4566`, without user, query or fragment
  --> runbell.toml:12:12
   |
12 | endpoint = 'localhost:4566'
   |            ^^^^^^^^^^^^^^^^

error: missing key `arn`
  --> runbell.toml:13:1
   |
13 | [[topic]]
   | ^^^^^^^^^

error: no sink is of type `fle`: did you mean `file`?
  --> runbell.toml:15:8
   |
15 | type = 'fle'
   |        ^^^^^

error: `{dat}` is no placeholder: did you mean `date`?; they are {date}, {hour}, {account}, {region}, {topic}, {route}, {command}, {instance}, {status}, {kind}, {replica}
  --> runbell.toml:18:8
   |
18 | path = '/x/{dat}'
   |        ^^^^^^^^^^

error: there is no key `mod` here: did you mean `mode`?
  --> runbell.toml:19:1
   |
19 | mod = '0640'
   | ^^^

error: there is no sink `aa`: did you mean `a`?
  --> runbell.toml:22:7
   |
22 | to = ['aa', 'b']
   |       ^^^^

error: a hold is at most an hour
  --> runbell.toml:23:8
   |
23 | hold = '2h'
   |        ^^^^

error: an empty list matches nothing: leave the key out, or name something
  --> runbell.toml:24:17
   |
24 | when = { kind = [], sttus = 'Failed' }
   |                 ^^

error: there is no key `sttus` here: did you mean `status`?
  --> runbell.toml:24:21
   |
24 | when = { kind = [], sttus = 'Failed' }
   |                     ^^^^^

"#;
