-- The quota of tenants. `partition` is the SHA-256 of the owner's encoding and comes first in every key of a user's rows;
-- the owner stands beside every row, in clear, so that a row that was filed wrongly is known by it, until the user's name
-- is taken off (`named`): then nothing says whose it was. No user, where it is named, is the anonymous bucket.
--
-- `period` is the kind of window, because the numbers of two kinds cannot be compared. Counters are JSON of integers
-- without a sign, which bigint does not hold. Times are microseconds since 1970, ids are 16 bytes, most significant first.
-- `until` is when a row's time is over: the end of an open hold's lease, or when a row may go. Null is never.

-- One row, drawn once: what the ids of holds are proven by, in every process.
CREATE TABLE ledger_meta (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  secret bytea NOT NULL CHECK (octet_length(secret) = 32)
);
INSERT INTO ledger_meta (secret)
  VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));

-- What all users of a namespace used and hold together.
CREATE TABLE ledger_totals (
  namespace text COLLATE "C" NOT NULL,
  period text COLLATE "C" NOT NULL,
  cell text NOT NULL,
  PRIMARY KEY (namespace, period)
) WITH (fillfactor = 50);

CREATE TABLE ledger_users (
  partition bytea NOT NULL CHECK (octet_length(partition) = 32),
  period text COLLATE "C" NOT NULL,
  namespace text COLLATE "C" NOT NULL,
  user_id text COLLATE "C",
  named boolean NOT NULL,
  -- Counts erasures: a scope that is older than the last one writes no name.
  epoch bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0),
  open_holds bigint NOT NULL CHECK (open_holds >= 0),
  cell text NOT NULL,
  until bigint,
  PRIMARY KEY (partition, period),
  CHECK (named OR user_id IS NULL)
) WITH (fillfactor = 70);
CREATE INDEX ledger_users_until ON ledger_users (namespace, until);

CREATE TABLE ledger_runs (
  partition bytea NOT NULL CHECK (octet_length(partition) = 32),
  period text COLLATE "C" NOT NULL,
  run bytea NOT NULL CHECK (octet_length(run) = 16),
  namespace text COLLATE "C" NOT NULL,
  user_id text COLLATE "C",
  named boolean NOT NULL,
  -- The hold that the counter began with.
  life bytea NOT NULL CHECK (octet_length(life) = 16),
  cell text NOT NULL,
  until bigint,
  PRIMARY KEY (partition, period, run),
  CHECK (named OR user_id IS NULL)
) WITH (fillfactor = 70);
CREATE INDEX ledger_runs_until ON ledger_runs (namespace, until);

CREATE TABLE ledger_holds (
  partition bytea NOT NULL CHECK (octet_length(partition) = 32),
  period text COLLATE "C" NOT NULL,
  id bytea NOT NULL CHECK (octet_length(id) = 16),
  namespace text COLLATE "C" NOT NULL,
  user_id text COLLATE "C",
  named boolean NOT NULL,
  run bytea NOT NULL CHECK (octet_length(run) = 16),
  seq bigint NOT NULL,
  -- When it was reserved, to list by.
  made bigint NOT NULL,
  -- Whether it keeps something aside. One that does not was charged an estimate, which can be corrected.
  open boolean NOT NULL,
  state text NOT NULL,
  -- Whether an estimate was charged that is more than nothing.
  charged boolean NOT NULL,
  terms bytea NOT NULL CHECK (octet_length(terms) = 32),
  granted text NOT NULL,
  expires bigint NOT NULL,
  number bigint NOT NULL,
  -- Where else it is counted: among all users together, and in which counter of its run.
  global boolean NOT NULL,
  life bytea CHECK (octet_length(life) = 16),
  until bigint,
  PRIMARY KEY (partition, period, id),
  CHECK (named OR user_id IS NULL)
) WITH (fillfactor = 80);
CREATE INDEX ledger_holds_key ON ledger_holds (partition, period, run, seq) WHERE open;
CREATE INDEX ledger_holds_due ON ledger_holds (partition, period, until);
CREATE INDEX ledger_holds_until ON ledger_holds (namespace, until);

-- Whether somebody's open hold has ended: a sweep of one look, that shows its caller a yes or a no and nothing else.
CREATE FUNCTION ledger_due(of_namespace text, of_period text, moment bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  due boolean;
BEGIN
  PERFORM set_config('loomflow.sweep', moment::text, true);
  SELECT EXISTS (
    SELECT FROM ledger_holds WHERE namespace = of_namespace AND until <= moment AND open AND period = of_period
  ) INTO due;
  PERFORM set_config('loomflow.sweep', '', true);
  RETURN due;
END
$$;
