-- The memory of tenants. `partition` is the SHA-256 of the owner's encoding and comes first in every key; the owner
-- stands beside every row, in clear, so that a row that was filed wrongly is known by it.
--
-- Texts that users and models wrote are bytea (UTF-8): they may hold NUL, which the type text refuses. Messages are
-- JSON, where NUL is escaped. Times are microseconds since 1970, ids are 16 bytes, most significant first.

CREATE TABLE memory_partitions (
  partition bytea PRIMARY KEY CHECK (octet_length(partition) = 32),
  -- Empty, and no user, while everything of the partition is erased: then nothing says whose it was.
  namespace text COLLATE "C" NOT NULL,
  user_id text COLLATE "C",
  epoch bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0),
  -- What the partition's vectors are of; null while it has none.
  space_model bytea,
  space_dimensions integer,
  -- Whether the partition is large and has an approximate index of its own.
  indexed boolean NOT NULL DEFAULT false,
  CHECK ((space_model IS NULL) = (space_dimensions IS NULL))
);

CREATE TABLE memory_episodes (
  partition bytea NOT NULL CHECK (octet_length(partition) = 32),
  id bytea NOT NULL CHECK (octet_length(id) = 16),
  namespace text COLLATE "C" NOT NULL,
  user_id text COLLATE "C",
  session text COLLATE "C" NOT NULL,
  said_at bigint NOT NULL,
  message_count integer NOT NULL,
  term_count integer NOT NULL,
  terms bigint[] NOT NULL,
  messages text NOT NULL,
  embedding vector,
  PRIMARY KEY (partition, id)
);
-- Hashes and components do not compress: trying to costs time and saves nothing.
ALTER TABLE memory_episodes ALTER COLUMN terms SET STORAGE EXTERNAL, ALTER COLUMN embedding SET STORAGE EXTERNAL;
CREATE INDEX memory_episodes_said ON memory_episodes (partition, said_at, id) INCLUDE (term_count);
CREATE INDEX memory_episodes_session ON memory_episodes (partition, session, said_at, id) INCLUDE (message_count);

CREATE TABLE memory_blocks (
  partition bytea NOT NULL CHECK (octet_length(partition) = 32),
  name text COLLATE "C" NOT NULL,
  namespace text COLLATE "C" NOT NULL,
  user_id text COLLATE "C",
  content bytea NOT NULL,
  place bigint NOT NULL,
  updated_at bigint NOT NULL,
  PRIMARY KEY (partition, name)
);

CREATE TABLE memory_facts (
  partition bytea NOT NULL CHECK (octet_length(partition) = 32),
  id bytea NOT NULL CHECK (octet_length(id) = 16),
  namespace text COLLATE "C" NOT NULL,
  user_id text COLLATE "C",
  subject bytea NOT NULL,
  predicate bytea NOT NULL,
  object bytea NOT NULL,
  -- A hash of subject and predicate, which may be longer than an index takes.
  key bigint NOT NULL,
  confidence smallint NOT NULL,
  valid_from bigint NOT NULL,
  valid_until bigint,
  known_from bigint NOT NULL,
  known_until bigint,
  sources bytea[] NOT NULL,
  term_count integer NOT NULL,
  terms bigint[] NOT NULL,
  embedding vector,
  PRIMARY KEY (partition, id)
);
ALTER TABLE memory_facts ALTER COLUMN terms SET STORAGE EXTERNAL, ALTER COLUMN embedding SET STORAGE EXTERNAL;
CREATE INDEX memory_facts_known ON memory_facts (partition, known_from, id);
CREATE INDEX memory_facts_believed ON memory_facts (partition, key) WHERE known_until IS NULL;

-- The owner may count rows, to know which partitions want an index. It could lift row-level security anyway; the
-- application's role is no member of it.
CREATE POLICY memory_maintenance ON memory_partitions FOR SELECT TO CURRENT_USER USING (true);
CREATE POLICY memory_maintenance ON memory_episodes FOR SELECT TO CURRENT_USER USING (true);
