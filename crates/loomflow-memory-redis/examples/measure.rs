//! Figures of the memory on a server: `cargo run --release --example measure -- redis://127.0.0.1:6379 [users]`.
//!
//! Everything is written under a prefix of its own, and unlinked by nobody: use a server that may be thrown away.
#![allow(clippy::print_stdout, reason = "it is a program that prints")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use loomflow_core::danger::assume_scope;
use loomflow_core::{
    Embedding, Epoch, FactQuery, Identity, MemoryStore, Message, Namespace, NewEpisode, NewFact, RecallQuery,
    RunId, Scope, SessionId, Timestamp, UserId,
};
use loomflow_memory_redis::{RedisMemory, RedisMemoryConfig};

const WRITERS: u64 = 16;

fn user(n: u64) -> Scope {
    let id = UserId::new(format!("user-{n}")).unwrap();
    assume_scope(Namespace::new("measure").unwrap(), Identity::User(id), Epoch::ZERO)
}

fn turn(run: u64, said: &str) -> NewEpisode {
    let messages = vec![Message::user(said), Message::assistant("It was noted and will be kept in mind.")];
    let at = Timestamp::from_micros(i64::try_from(run).unwrap() * 1_000);
    NewEpisode::new(RunId::from_u128(u128::from(run) + 1), SessionId::new("s").unwrap(), at, messages)
}

fn vector(seed: u64, dimensions: usize) -> Embedding {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    Embedding::new("m", (0..dimensions).map(|_| next()).collect::<Vec<f32>>())
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let of = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{what}: p50 {:?}, p99 {:?}, of {}", of(0.5), of(0.99), times.len());
}

async fn writers<F, Fut>(what: &str, each: u64, work: F)
where
    F: Fn(u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let begun = Instant::now();
    let tasks = (0..WRITERS).map(|w| {
        let work = work.clone();
        tokio::spawn(async move {
            for n in 0..each {
                work(w * each + n).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    println!("{what}: {:.0}/s", (WRITERS * each) as f64 / begun.elapsed().as_secs_f64());
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (url, users) = (args[1].clone(), args.get(2).map_or(10_000, |n| n.parse::<u64>().unwrap()));
    let prefix = format!("measure{}", std::process::id());
    let config = |search| RedisMemoryConfig::new(&url).with_key_prefix(&prefix).with_search(search);
    let store = Arc::new(RedisMemory::connect(config(true)).await.unwrap());
    let plain = Arc::new(RedisMemory::connect(config(false)).await.unwrap());
    println!("search: {}", store.uses_search().await);

    // The floor: a script of about the same bytes in and the same commands, by the same client.
    let floor = redis::Script::new(
        "if redis.call('GET', KEYS[1]..':e') then return 0 end redis.call('HEXISTS', KEYS[1]..':ep', ARGV[1]) \
         redis.call('HMGET', KEYS[1]..':m','a','b','c','d','e') redis.call('HSET', KEYS[1]..':ep', ARGV[1], ARGV[2]) \
         redis.call('HSET', KEYS[1]..':ix', ARGV[1], ARGV[3]) redis.call('ZADD', KEYS[1]..':or', 0, ARGV[1]) \
         redis.call('ZADD', KEYS[1]..':os', 0, ARGV[1]) redis.call('HEXISTS', KEYS[1]..':m', 'n') \
         redis.call('HINCRBY', KEYS[1]..':m', 'ver', 1) return 1",
    );
    let client = redis::Client::open(url.as_str()).unwrap();
    let manager = client.get_connection_manager().await.unwrap();
    let (name, script) = (prefix.clone(), Arc::new(floor));
    writers("floor, one script of the same commands, 16 writers", 2_000, move |n| {
        let (mut manager, script, name) = (manager.clone(), script.clone(), name.clone());
        async move {
            let key = format!("{name}:floor{{{}}}", n % 1_000);
            let call = &mut script.key(key);
            call.arg(n.to_string()).arg("x".repeat(260)).arg("y".repeat(180)).arg("z".repeat(300));
            call.invoke_async::<i64>(&mut manager).await.unwrap();
        }
    })
    .await;
    let writing = store.clone();
    writers("remember, 16 writers, 1,000 users", 2_000, move |n| {
        let store = writing.clone();
        async move {
            let new =
                turn(n, &format!("Please remember that my flight {n} leaves on Tuesday from gate four."));
            store.remember(&user(1_000_000 + n % 1_000), new).await.unwrap();
        }
    })
    .await;

    for (label, store) in [("search", store.clone()), ("plain", plain.clone())] {
        for (n, dimensions) in [(50_u64, 384_usize), (200, 384), (1_000, 384), (1_000, 1_536)] {
            let scope = user(2_000_000 + n * 10_000 + dimensions as u64);
            if label == "search" {
                for run in 0..n {
                    let new = turn(run, "words that stand there").with_embedding(vector(run, dimensions));
                    store.remember(&scope, new).await.unwrap();
                }
            }
            let mut times = Vec::new();
            for asked in 0..100 {
                let query = RecallQuery::new("", 8).with_embedding(vector(7_000 + asked, dimensions));
                let begun = Instant::now();
                store.recall(&scope, &query).await.unwrap();
                times.push(begun.elapsed());
            }
            show(&format!("recall by vector, {label}, {n} episodes of {dimensions}"), times);
        }
    }

    let (facts, batch) = (plain.clone(), users.div_ceil(WRITERS));
    writers("facts' users filled (100 facts each)", batch, move |n| {
        let store = facts.clone();
        async move {
            let scope = user(n);
            for f in 0..100 {
                let fact = NewFact::new(
                    "me",
                    "likes",
                    format!("thing {f} of colour {}", f % 7),
                    Timestamp::from_micros(f),
                );
                store.facts().unwrap().assert(&scope, fact).await.unwrap();
            }
            store.remember(&scope, turn(1, "I like the falcon over the harbour")).await.unwrap();
        }
    })
    .await;
    let (mut recalls, mut queries) = (Vec::new(), Vec::new());
    for n in 0..2_000 {
        let scope = user(n * 7_919 % (batch * WRITERS));
        let begun = Instant::now();
        assert_eq!(plain.recall(&scope, &RecallQuery::new("falcon", 8)).await.unwrap().len(), 1);
        recalls.push(begun.elapsed());
        let begun = Instant::now();
        let query = FactQuery::all(8).about("thing of colour 3", None);
        assert_eq!(plain.facts().unwrap().query(&scope, &query).await.unwrap().len(), 8);
        queries.push(begun.elapsed());
    }
    show("recall, one user among those", recalls);
    show("facts by words, 100 of one user among those", queries);
}
