-- GCRA by the server's clock, for one user and all users of the namespace together: all limits, or none. The transaction
-- holds the locks of both, taken in one order by everybody.
-- $1 partition, $2 namespace; for each limit: $3 whether of all together, $4 its place from 1, $5 the capacity and $6 what is
-- asked or corrected by, in nanoseconds; $7 whether it is asked. One number for each limit comes back, in order: by how many
-- nanoseconds it is exceeded.
WITH clock AS MATERIALIZED (
  -- What a crash loses of this comes back sooner, by as much as was lost; a disk is not waited for.
  SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000 AS now,
    set_config('synchronous_commit', 'off', true) AS lazy
), kept AS (
  SELECT false AS whole, tats FROM rate_limits WHERE partition = $1
  UNION ALL SELECT true, tats FROM rate_limit_totals WHERE namespace = $2
), judged AS (
  SELECT a.*, clock.now, greatest(0, least(coalesce(kept.tats[a.place], 0) - clock.now, 2 * a.capacity)) AS level
  FROM unnest($3::boolean[], $4::integer[], $5::bigint[], $6::bigint[])
    WITH ORDINALITY AS a(whole, place, capacity, change, number)
  CROSS JOIN clock LEFT JOIN kept ON kept.whole = a.whole
), after AS MATERIALIZED (
  SELECT number, whole, place,
    CASE WHEN $7 THEN greatest(0, level + change - capacity) ELSE 0 END AS over,
    now + CASE WHEN $7 THEN level + change ELSE greatest(0, least(level + change, 2 * capacity)) END AS tat
  FROM judged
), written AS (
  SELECT whole, ARRAY(
      SELECT coalesce(after.tat, kept.tats[place.number], 0) FROM generate_series(1, 3) place(number)
      LEFT JOIN after ON after.whole = changed.whole AND after.place = place.number
      LEFT JOIN kept ON kept.whole = changed.whole
      ORDER BY place.number
    ) AS tats
  FROM (SELECT DISTINCT whole FROM after) changed
  WHERE NOT EXISTS (SELECT FROM after WHERE over > 0)
), users AS (
  INSERT INTO rate_limits (partition, namespace, tats, until)
  SELECT $1, $2, tats, (SELECT max(tat) FROM unnest(tats) tat) / 1000 + 1 FROM written WHERE NOT whole
  ON CONFLICT (partition) DO UPDATE SET tats = excluded.tats, until = excluded.until
), totals AS (
  INSERT INTO rate_limit_totals (namespace, tats) SELECT $2, tats FROM written WHERE whole
  ON CONFLICT (namespace) DO UPDATE SET tats = excluded.tats
)
SELECT over FROM after ORDER BY number
