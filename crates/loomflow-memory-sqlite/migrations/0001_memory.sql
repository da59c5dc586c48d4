-- Keys and times move about in their trees; what was said does not. See docs/adr/0013.
--
-- Texts, and whose they are, lie in tables that are only ever appended to, and are blanked in place when they are erased.
-- Everything else names them by number.

CREATE TABLE memory_partitions (
    partition   BLOB    NOT NULL CHECK (length(partition) = 32),
    epoch       INTEGER NOT NULL,
    model       TEXT,
    dimensions  INTEGER,
    PRIMARY KEY (partition)
) STRICT, WITHOUT ROWID;

CREATE TABLE memory_episode_texts (
    content    INTEGER PRIMARY KEY,
    partition  BLOB NOT NULL,
    namespace  TEXT NOT NULL,
    user_id    TEXT,
    session    TEXT NOT NULL,
    terms      BLOB NOT NULL,
    messages   TEXT NOT NULL,
    vector     BLOB
) STRICT;

CREATE TABLE memory_episodes (
    partition  BLOB    NOT NULL CHECK (length(partition) = 32),
    at         INTEGER NOT NULL,
    id         BLOB    NOT NULL CHECK (length(id) = 16),
    content    INTEGER NOT NULL,
    session    INTEGER NOT NULL,
    messages   INTEGER NOT NULL,
    PRIMARY KEY (partition, at, id)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX memory_episodes_by_id ON memory_episodes (partition, id);
CREATE INDEX memory_episodes_by_session ON memory_episodes (partition, session, at, id, content, messages);

CREATE TABLE memory_block_texts (
    content    INTEGER PRIMARY KEY,
    partition  BLOB NOT NULL,
    namespace  TEXT NOT NULL,
    user_id    TEXT,
    name       TEXT NOT NULL,
    text       TEXT NOT NULL
) STRICT;

CREATE TABLE memory_blocks (
    partition   BLOB    NOT NULL CHECK (length(partition) = 32),
    content     INTEGER NOT NULL,
    place       INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (partition, content)
) STRICT, WITHOUT ROWID;

CREATE TABLE memory_fact_texts (
    content    INTEGER PRIMARY KEY,
    partition  BLOB NOT NULL,
    namespace  TEXT NOT NULL,
    user_id    TEXT,
    subject    TEXT NOT NULL,
    predicate  TEXT NOT NULL,
    object     TEXT NOT NULL,
    terms      BLOB NOT NULL,
    vector     BLOB
) STRICT;

CREATE TABLE memory_facts (
    partition    BLOB    NOT NULL CHECK (length(partition) = 32),
    known_from   INTEGER NOT NULL,
    id           BLOB    NOT NULL CHECK (length(id) = 16),
    content      INTEGER NOT NULL,
    topic        INTEGER NOT NULL,
    confidence   INTEGER NOT NULL,
    valid_from   INTEGER NOT NULL,
    valid_until  INTEGER,
    known_until  INTEGER,
    sources      BLOB    NOT NULL,
    PRIMARY KEY (partition, known_from, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX memory_facts_by_topic ON memory_facts (partition, topic) WHERE known_until IS NULL;
