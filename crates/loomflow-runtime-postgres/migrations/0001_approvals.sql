-- Requests for approval, and approvals that are remembered. `partition` is the SHA-256 of the requester's encoding and comes
-- first in every key; the requester stands beside every row, in clear, so that a row that was filed wrongly is known by it.
--
-- `deciders` are the partitions of those who may decide: row-level security shows them these rows, too, and lets them take a
-- request from pending (0) to decided (1), in their own name (`decider`), and no further. Its requester uses it up
-- (2), or makes it void (3).
--
-- Texts are JSON, where NUL is escaped. Times are microseconds since 1970, ids are 16 bytes, most significant first.

CREATE TABLE approvals_partitions (
  partition bytea PRIMARY KEY CHECK (octet_length(partition) = 32),
  epoch bigint NOT NULL CHECK (epoch >= 0)
);

CREATE TABLE approvals_requests (
  partition bytea NOT NULL CHECK (octet_length(partition) = 32),
  id bytea NOT NULL UNIQUE CHECK (octet_length(id) = 16),
  namespace text COLLATE "C" NOT NULL,
  user_id text COLLATE "C",
  asked_at bigint NOT NULL,
  expires_at bigint NOT NULL,
  deciders bytea[] NOT NULL,
  body text NOT NULL,
  state smallint NOT NULL DEFAULT 0 CHECK (state BETWEEN 0 AND 3),
  decision text,
  decider bytea CHECK (octet_length(decider) = 32),
  PRIMARY KEY (partition, id),
  UNIQUE (partition, id, decider),
  CHECK ((state = 0) = (decision IS NULL) AND (state = 0) = (decider IS NULL))
);
CREATE INDEX approvals_requests_pending ON approvals_requests USING gin (deciders) WHERE state = 0;

-- A grant is of a request that somebody decided, and says who that was: no other row fits the foreign key.
CREATE TABLE approvals_grants (
  partition bytea NOT NULL,
  id bytea NOT NULL UNIQUE,
  decider bytea NOT NULL,
  namespace text COLLATE "C" NOT NULL,
  user_id text COLLATE "C",
  tool text COLLATE "C" NOT NULL,
  asked_at bigint NOT NULL,
  granted_at bigint NOT NULL,
  expires_at bigint NOT NULL,
  deciders bytea[] NOT NULL,
  body text NOT NULL,
  PRIMARY KEY (partition, id),
  FOREIGN KEY (partition, id, decider) REFERENCES approvals_requests (partition, id, decider)
);
CREATE INDEX approvals_grants_deciders ON approvals_grants USING gin (deciders);
