-- The rate limits of tenants: when each limit is whole again, in nanoseconds since 1970, by resource: runs, model calls,
-- tokens. Zero was never used. `partition` is the SHA-256 of the owner's encoding; no row has a name. `until` is when the
-- last of a row's limits is whole, in microseconds: the row says nothing any more then, and may go.
CREATE TABLE rate_limits (
  partition bytea PRIMARY KEY CHECK (octet_length(partition) = 32),
  namespace text COLLATE "C" NOT NULL,
  tats bigint[] NOT NULL CHECK (cardinality(tats) = 3),
  until bigint NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX rate_limits_until ON rate_limits (namespace, until);

-- Those of all users of a namespace together.
CREATE TABLE rate_limit_totals (
  namespace text COLLATE "C" PRIMARY KEY,
  tats bigint[] NOT NULL CHECK (cardinality(tats) = 3)
) WITH (fillfactor = 50);
