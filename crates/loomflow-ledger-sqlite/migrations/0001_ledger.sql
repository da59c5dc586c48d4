-- Counters, holds, and whose they are.
--
-- Names lie in a table that is only ever appended to, and are blanked in place when they are erased (docs/adr/0013).
-- Everything else knows a user, and a namespace, by a hash.

-- The secret proves that an id of a hold was drawn here, and for whom; it is drawn with the schema, once. New counters
-- begin no earlier than `floor`: up to there, counters of ended windows were cleared away.
CREATE TABLE ledger_meta (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    secret  BLOB    NOT NULL CHECK (length(secret) = 32),
    floor   INTEGER NOT NULL
) STRICT;

INSERT INTO ledger_meta (one, secret, floor) VALUES (1, randomblob(32), -9223372036854775807);

CREATE TABLE ledger_names (
    name       INTEGER PRIMARY KEY,
    namespace  TEXT NOT NULL,
    user_id    TEXT
) STRICT;

-- No name: it was erased, and scopes from before that epoch put none back.
CREATE TABLE ledger_users (
    partition  BLOB    NOT NULL CHECK (length(partition) = 32),
    epoch      INTEGER NOT NULL,
    name       INTEGER,
    PRIMARY KEY (partition)
) STRICT, WITHOUT ROWID;

-- The partition is a user's, or that of all users of a namespace together. Numbers of windows mean something only within
-- one kind of window, so the kind is part of the key; runs have none.
CREATE TABLE ledger_counters (
    partition   BLOB    NOT NULL CHECK (length(partition) = 32),
    entity      TEXT    NOT NULL CHECK (entity IN ('global', 'user', 'run')),
    window      TEXT    NOT NULL,
    run         BLOB    NOT NULL CHECK (length(run) IN (0, 16)),
    life        BLOB    CHECK (length(life) = 16),
    open_holds  INTEGER NOT NULL,
    idle_at     INTEGER,
    state       TEXT    NOT NULL,
    PRIMARY KEY (partition, entity, window, run)
) STRICT, WITHOUT ROWID;

CREATE INDEX ledger_counters_idle ON ledger_counters (idle_at) WHERE idle_at IS NOT NULL;

-- `place` is the order in which holds were made; `ended` is when one was closed with an estimate, and is nothing while it
-- is open.
CREATE TABLE ledger_holds (
    place      INTEGER PRIMARY KEY,
    partition  BLOB    NOT NULL CHECK (length(partition) = 32),
    id         BLOB    NOT NULL CHECK (length(id) = 16),
    space      BLOB    NOT NULL CHECK (length(space) = 32),
    window     TEXT    NOT NULL,
    run        BLOB    NOT NULL CHECK (length(run) = 16),
    seq        INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    terms      BLOB    NOT NULL CHECK (length(terms) = 32),
    granted    TEXT    NOT NULL,
    expires    INTEGER NOT NULL,
    number     INTEGER NOT NULL,
    global     INTEGER NOT NULL,
    life       BLOB    CHECK (length(life) = 16),
    ended      INTEGER
) STRICT;

CREATE UNIQUE INDEX ledger_holds_by_id ON ledger_holds (partition, id);
CREATE UNIQUE INDEX ledger_holds_by_key ON ledger_holds (partition, window, run, seq) WHERE ended IS NULL;
CREATE INDEX ledger_holds_due ON ledger_holds (partition, window, expires) WHERE ended IS NULL;
CREATE INDEX ledger_holds_due_of_all ON ledger_holds (space, expires) WHERE ended IS NULL;
CREATE INDEX ledger_holds_ended ON ledger_holds (partition, ended, place) WHERE ended IS NOT NULL;
CREATE INDEX ledger_holds_old ON ledger_holds (ended) WHERE ended IS NOT NULL;
