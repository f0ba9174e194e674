-- The tables of the embedded store.

-- The clock that everything waits by: logical = max(latest, wall + ahead). One row.
CREATE TABLE clock (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  latest INTEGER NOT NULL,                -- latest logical time written; by whatever writes, once a second
  ahead INTEGER NOT NULL,                 -- logical less wall time, ns; by beat, when the wall clock jumps
  step INTEGER NOT NULL CHECK (step >= 0) -- times that `ahead` was changed; by beat
);
INSERT INTO clock VALUES (1, 0, 0, 0);

-- Topics, routes and sinks.
CREATE TABLE name (
  id INTEGER PRIMARY KEY CHECK (id >= 0), -- hash of the text
  text TEXT NOT NULL UNIQUE
);

-- Verified messages, as they were signed. Written by append, removed by forgetting.
CREATE TABLE event (
  id INTEGER PRIMARY KEY,
  topic INTEGER NOT NULL,                 -- name of its topic
  sns_time INTEGER NOT NULL,              -- when SNS signed it, wall
  message_id TEXT NOT NULL,
  envelope INTEGER NOT NULL CHECK (envelope BETWEEN 0 AND 2),
  received_at INTEGER NOT NULL,           -- wall
  command_no INTEGER,                     -- hash of trust, account, region and id; null: no step
  instance TEXT,                          -- empty: of the whole command
  status TEXT,
  event_time INTEGER,                     -- when it happened, as AWS says; wall
  repeat_of INTEGER,                      -- event that told the same step first
  conflict INTEGER NOT NULL DEFAULT 0 CHECK (conflict IN (0, 1)),
  subject TEXT,
  body BLOB NOT NULL,
  signature BLOB,                         -- with the next four the proof of its origin: the string
  signature_version INTEGER CHECK (signature_version IN (1, 2)), -- to sign can be rebuilt
  timestamp TEXT,                         -- literal Timestamp, where it is not `.SSSZ` of sns_time
  certificate INTEGER,                    -- certificate.no that verified it
  generation INTEGER,                     -- generation.no of the settings that judged it
  UNIQUE (topic, sns_time, message_id),
  CHECK ((command_no IS NULL) = (instance IS NULL) AND (command_no IS NULL) = (status IS NULL)
    AND (command_no IS NULL) = (event_time IS NULL))
);

-- Certificates that verified something.
CREATE TABLE certificate (
  no INTEGER PRIMARY KEY CHECK (no >= 0), -- hash of sha256
  sha256 BLOB NOT NULL UNIQUE CHECK (length(sha256) = 32),
  pem BLOB NOT NULL,
  last_used_day INTEGER NOT NULL          -- wall, days since the epoch; by append, once a day
);

-- The certificate that lies at each URL, for the next start.
CREATE TABLE certificate_at (
  url TEXT PRIMARY KEY,
  pem BLOB NOT NULL,
  fetched_at INTEGER NOT NULL             -- wall
) WITHOUT ROWID;

-- Versions of the settings that were in force.
CREATE TABLE generation (
  no INTEGER PRIMARY KEY CHECK (no >= 0), -- hash of `hash`
  hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
  text TEXT NOT NULL                      -- canonical settings without secrets
);
CREATE TABLE generation_use (
  no INTEGER NOT NULL,
  replica TEXT NOT NULL,
  since INTEGER NOT NULL,                 -- wall
  PRIMARY KEY (no, replica, since)
) WITHOUT ROWID;

-- Commands, each named by who vouches for it, account, region and id.
CREATE TABLE command (
  no INTEGER PRIMARY KEY CHECK (no >= 0), -- hash of trust, account, region, id
  trust TEXT NOT NULL,                    -- `aws`, or the URL of an endpoint
  account TEXT NOT NULL,
  region TEXT NOT NULL,
  id TEXT NOT NULL,
  first_event INTEGER NOT NULL,           -- no event of it has a smaller number
  last_event_at INTEGER NOT NULL,         -- wall, to the minute; by append
  requested_at INTEGER,                   -- wall; the next five by the commands' own issue
  expires_at INTEGER,
  ended_at INTEGER,
  summary_event INTEGER,
  named INTEGER CHECK (named >= 0)        -- instances that its summary names
);
CREATE INDEX command_id ON command (id);
CREATE INDEX command_open ON command (expires_at) WHERE ended_at IS NULL AND expires_at IS NOT NULL;

-- Facts: the first event that told each.
CREATE TABLE step (
  command_no INTEGER NOT NULL,
  instance TEXT NOT NULL,                 -- empty: the whole command
  status TEXT NOT NULL,
  event_time INTEGER NOT NULL,            -- wall
  event INTEGER NOT NULL,
  PRIMARY KEY (command_no, instance, status, event_time)
) WITHOUT ROWID;

-- Durable ordered queues. A lane is due while anything waits in it, leased or not: a lease's end is
-- the lane's `due_at`, so that no state can last for ever.
CREATE TABLE lane (
  id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never given again: a late settlement names its lane by it
  kind INTEGER NOT NULL CHECK (kind BETWEEN 0 AND 4),
  number INTEGER NOT NULL,                -- of its command, topic or event, by kind
  instance TEXT NOT NULL,
  route INTEGER NOT NULL,
  sink INTEGER NOT NULL,
  due_at INTEGER,                         -- logical; null exactly where nothing waits; by all who write rows
  not_before INTEGER NOT NULL DEFAULT 0,  -- logical; what goes in turn heeds it; by settle
  leased INTEGER NOT NULL DEFAULT 0 CHECK (leased IN (0, 1)), -- it has a row in `lease`
  epoch INTEGER NOT NULL DEFAULT 0 CHECK (epoch >= 0),        -- raised by each lease and each end of one
  high BLOB,                              -- greatest sort key that was sent, or may have been; by settle
  early INTEGER NOT NULL DEFAULT 1 CHECK (early IN (0, 1)),   -- it may release early; by append
  fed INTEGER NOT NULL DEFAULT 0 CHECK (fed >= 0),            -- rows put into it so far
  UNIQUE (kind, number, instance, route, sink),
  CHECK (NOT leased OR due_at IS NOT NULL)
);
CREATE INDEX lane_due ON lane (sink, due_at) WHERE due_at IS NOT NULL;

-- Leases. Written by lease, removed by settle or recovery.
CREATE TABLE lease (
  lane INTEGER PRIMARY KEY,
  epoch INTEGER NOT NULL CHECK (epoch > 0),
  holder INTEGER NOT NULL,                -- holder.id
  call INTEGER NOT NULL,                  -- the holder's own number of the take
  upto BLOB,                              -- greatest sort key taken in turn
  upto_fed INTEGER NOT NULL CHECK (upto_fed >= 0), -- lane.fed at the take
  alone_upto INTEGER,                     -- latest release taken alone
  batch INTEGER,                          -- batch of a digest
  CHECK (upto IS NOT NULL OR alone_upto IS NOT NULL OR batch IS NOT NULL)
);

-- Processes that lease. Here there is one at a time: a lock on the file sees to that.
CREATE TABLE holder (
  id INTEGER PRIMARY KEY CHECK (id > 0),  -- 63 random bits for each start
  name TEXT NOT NULL,
  beat_at INTEGER NOT NULL                -- logical; 0: it has left
);

-- Deliveries that wait.
CREATE TABLE waiting (
  lane INTEGER NOT NULL,
  sort_key BLOB NOT NULL,
  event INTEGER NOT NULL,
  fed INTEGER NOT NULL CHECK (fed > 0),   -- lane.fed when it was put
  release_at INTEGER NOT NULL,            -- logical
  alone INTEGER NOT NULL DEFAULT 0 CHECK (alone IN (0, 1)),   -- it goes by itself: parked, or by hand
  resent INTEGER NOT NULL DEFAULT 0 CHECK (resent IN (0, 1)), -- by hand from the dead letters
  possible_repeat INTEGER NOT NULL DEFAULT 0 CHECK (possible_repeat IN (0, 1)),
  high_then BLOB CHECK (high_then IS NULL OR possible_repeat), -- lane.high before its first try
  instead_of INTEGER,                     -- sink it was owed to first
  tries INTEGER NOT NULL DEFAULT 0 CHECK (tries >= 0),
  failing_since INTEGER,                  -- logical
  progress TEXT,                          -- what of it arrived, in the sink's words
  PRIMARY KEY (lane, sort_key)
) WITHOUT ROWID;
CREATE INDEX waiting_release ON waiting (lane, alone, release_at);

-- History: one row for each end of a try.
CREATE TABLE outcome (
  event INTEGER NOT NULL,
  route INTEGER NOT NULL,
  sink INTEGER NOT NULL,
  n INTEGER NOT NULL CHECK (n > 0),       -- number of the try, by event, route and sink
  at INTEGER NOT NULL,                    -- wall
  result TEXT NOT NULL,
  marks INTEGER NOT NULL,                 -- bits: 1 repeat, 2 possible repeat, 4 resent, 8 conflict
  late INTEGER,                           -- ns
  answer TEXT,
  took INTEGER CHECK (took >= 0),         -- ns
  arrived INTEGER CHECK (arrived BETWEEN 0 AND 2), -- no, maybe, yes; this and the next two by blame
  blame INTEGER,
  batch INTEGER,                          -- batch of a digest that it went with
  cause TEXT,                             -- of an end that no sink made
  holder INTEGER,                         -- who wrote it
  PRIMARY KEY (event, route, sink, n)
) WITHOUT ROWID;

-- Deliveries given up. Written by settle and bury, removed by operators.
CREATE TABLE dead (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  event INTEGER NOT NULL,
  kind INTEGER NOT NULL CHECK (kind BETWEEN 0 AND 4), -- its lane, in columns
  number INTEGER NOT NULL,
  instance TEXT NOT NULL,
  route INTEGER NOT NULL,
  sink INTEGER NOT NULL,
  sort_key BLOB NOT NULL,
  died_at INTEGER NOT NULL,               -- wall
  tries INTEGER NOT NULL CHECK (tries >= 0),
  answer TEXT
);
CREATE INDEX dead_event ON dead (event);

-- Messages to which later notices of a command refer.
CREATE TABLE thread (
  command_no INTEGER NOT NULL,
  sink INTEGER NOT NULL,
  route INTEGER NOT NULL,
  message TEXT NOT NULL,                  -- the sink's own name for it
  told INTEGER NOT NULL CHECK (told >= 0), -- troubles of the command that were told with it
  PRIMARY KEY (command_no, sink, route)
) WITHOUT ROWID;

-- Sinks as a whole.
CREATE TABLE sink (
  name INTEGER PRIMARY KEY,
  backoff_until INTEGER,                  -- logical; by whoever sends
  failing_since INTEGER                   -- logical; first backoff after the last success
);

-- State of a sink that must be written with a settlement.
CREATE TABLE sink_part (
  sink INTEGER NOT NULL,
  holder INTEGER NOT NULL,
  state BLOB NOT NULL,
  PRIMARY KEY (sink, holder)
) WITHOUT ROWID;

-- Acts of operators.
CREATE TABLE act (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at INTEGER NOT NULL,                    -- wall
  who TEXT NOT NULL,
  act TEXT NOT NULL
);

-- The books: owed = sent + muted + redundant + dropped + dead + waiting.
CREATE TABLE tally (
  sink INTEGER NOT NULL,
  day INTEGER NOT NULL,                   -- wall, days since the epoch
  owed INTEGER NOT NULL DEFAULT 0,
  sent INTEGER NOT NULL DEFAULT 0,
  muted INTEGER NOT NULL DEFAULT 0,
  redundant INTEGER NOT NULL DEFAULT 0,
  dropped INTEGER NOT NULL DEFAULT 0,
  dead INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (sink, day)
) WITHOUT ROWID;

-- Subscriptions that asked to be confirmed.
CREATE TABLE subscription (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  topic TEXT NOT NULL,
  token TEXT NOT NULL,
  asked_at INTEGER NOT NULL,              -- wall
  confirmed_at INTEGER,                   -- wall
  UNIQUE (topic, token)
);
