-- Requests for approval, and approvals that are remembered.
--
-- What was asked and decided, and whose it is, lies in a table that is only ever appended to, and is blanked in place when it
-- is erased: see docs/adr/0013. The rest has hashes, times and numbers, and moves about in its trees.

CREATE TABLE approvals_partitions (
    partition  BLOB    NOT NULL CHECK (length(partition) = 32),
    epoch      INTEGER NOT NULL,
    PRIMARY KEY (partition)
) STRICT, WITHOUT ROWID;

CREATE TABLE approvals_texts (
    content    INTEGER PRIMARY KEY,
    namespace  TEXT NOT NULL,
    user_id    TEXT,
    body       TEXT NOT NULL
) STRICT;

CREATE TABLE approvals_requests (
    partition   BLOB    NOT NULL CHECK (length(partition) = 32),
    id          BLOB    NOT NULL CHECK (length(id) = 16),
    content     INTEGER NOT NULL,
    asked_at    INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    -- 0 pending, 1 decided, 2 consumed, 3 void.
    state       INTEGER NOT NULL CHECK (state IN (0, 1, 2, 3)),
    decision    INTEGER CHECK ((state = 0) = (decision IS NULL)),
    PRIMARY KEY (partition, id)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX approvals_requests_by_id ON approvals_requests (id);

CREATE TABLE approvals_grants (
    partition   BLOB    NOT NULL CHECK (length(partition) = 32),
    id          BLOB    NOT NULL CHECK (length(id) = 16),
    content     INTEGER NOT NULL,
    asked_at    INTEGER NOT NULL,
    granted_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    PRIMARY KEY (partition, id)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX approvals_grants_by_id ON approvals_grants (id);

-- Which partitions may decide a request, and see and revoke the grant that was given on it: they share a number.
CREATE TABLE approvals_deciders (
    decider    BLOB NOT NULL CHECK (length(decider) = 32),
    partition  BLOB NOT NULL CHECK (length(partition) = 32),
    id         BLOB NOT NULL CHECK (length(id) = 16),
    PRIMARY KEY (decider, partition, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX approvals_deciders_by_id ON approvals_deciders (partition, id);
