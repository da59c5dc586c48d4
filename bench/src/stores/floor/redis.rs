//! A script that stores the bytes of an episode in a hash and adds it to two sorted sets, from as many tasks as there are
//! writers, over one multiplexed connection of the same client.

use std::time::Duration;

use loomflow_core::Result;
use redis::{Client, Script};

use super::failed;
use crate::progress::Progress;
use crate::stores::load::Load;
use crate::stores::{Args, Floor};

const STORE: &str = "redis.call('HSET', KEYS[1], 'messages', ARGV[2], 'terms', ARGV[3], 'vector', ARGV[4]) \
                     redis.call('ZADD', KEYS[2], ARGV[1], ARGV[1]) \
                     redis.call('ZADD', KEYS[3], ARGV[1], ARGV[1]) return 1";
/// What a turn of the load takes as JSON, and as terms.
const MESSAGES: usize = 260;
const TERMS: usize = 8 * 22;
/// How many keys are dropped at once.
const DROPPED: usize = 1_000;

pub(super) async fn measure(args: &Args) -> Result<Floor> {
    let client = Client::open(args.memory.as_str()).map_err(|_| failed("the URL cannot be read"))?;
    let connection = client.get_multiplexed_async_connection().await.map_err(|_| failed("no connection"))?;
    let prefix = format!("loomflow-floor:{:016x}", rand::random::<u64>());
    let load = Load { workers: args.writers, operations: u64::MAX, time: Duration::from_secs(args.seconds) };
    let (vector, shared, name) = (vec![7_u8; 4 * args.dimensions], connection.clone(), prefix.clone());
    let progress = Progress::over(0, "bare scripts", args.quiet);
    let done = load
        .run(&progress, move |n| {
            let (mut connection, prefix, vector) = (shared.clone(), name.clone(), vector.clone());
            async move {
                let user = n % 128;
                let script = Script::new(STORE);
                let mut call = script.key(format!("{prefix}:{{{user}}}:e:{n}"));
                call.key(format!("{prefix}:{{{user}}}:t")).key(format!("{prefix}:{{{user}}}:s"));
                call.arg(n).arg("m".repeat(MESSAGES)).arg(vec![1_u8; TERMS]).arg(vector);
                call.invoke_async::<i64>(&mut connection).await.map(drop).map_err(failed)
            }
        })
        .await?;
    clear(connection, &prefix, done.latencies.len() as u64).await?;
    let how = format!("EVALSHA of a hash and two sorted sets, {} tasks on one connection", args.writers);
    Ok(Floor { how, per_s: done.per_second() })
}

async fn clear(mut connection: redis::aio::MultiplexedConnection, prefix: &str, rows: u64) -> Result<()> {
    let episodes = (0..rows).map(|n| format!("{prefix}:{{{}}}:e:{n}", n % 128));
    let sets = (0..128).flat_map(|user| ["t", "s"].map(|set| format!("{prefix}:{{{user}}}:{set}")));
    let keys: Vec<String> = episodes.chain(sets).collect();
    for some in keys.chunks(DROPPED) {
        redis::cmd("UNLINK").arg(some).query_async::<i64>(&mut connection).await.map_err(failed)?;
    }
    Ok(())
}
