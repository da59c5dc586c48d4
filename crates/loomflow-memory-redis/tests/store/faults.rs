//! Networks that fail, a server that is full or refuses, and futures that are dropped.

use std::time::Duration;

use loomflow_conformance::doubles::{Direction, FaultyProxy};
use loomflow_core::{
    Erase, Error, ErrorKind, FactQuery, MemoryStore, NewFact, PutBlock, RecallQuery, TenantData,
};
use loomflow_memory_redis::{RedisMemory, RedisMemoryConfig};
use loomflow_tests::own::OwnRedis;

use crate::common::{at, connect, fresh_namespace, raw, turn, url, user};

async fn through() -> (FaultyProxy, RedisMemory) {
    let url = url("redis-plain");
    let proxy = FaultyProxy::start(&url).await.unwrap();
    let config = RedisMemoryConfig::new(proxy.url_like(&url))
        .with_operation_timeout(Duration::from_millis(400))
        .with_connect_timeout(Duration::from_millis(400));
    (proxy, RedisMemory::connect(config).await.unwrap())
}

#[tokio::test]
async fn a_connection_that_is_cut_costs_a_retry_and_no_error() {
    let (proxy, store) = through().await;
    let namespace = fresh_namespace();
    let scope = user(&namespace, "ada", 0);
    store.remember(&scope, turn(1, "s", 1, "falcon")).await.unwrap();
    proxy.cut().await;
    assert_eq!(store.recall(&scope, &RecallQuery::new("falcon", 9)).await.unwrap().len(), 1);
    // The server did its work, and its answer was lost.
    proxy.cut_after(Direction::Replies, 0);
    store.remember(&scope, turn(2, "s", 1, "falcon")).await.unwrap();
    proxy.cut_after(Direction::Replies, 0);
    let asserted = store.facts().unwrap().assert(&scope, NewFact::new("me", "is", "x", at(1))).await.unwrap();
    let facts = store.facts().unwrap().query(&scope, &FactQuery::all(9)).await.unwrap();
    assert_eq!((facts.len(), facts[0].clone().open(&scope).unwrap().id), (1, asserted.id));
    assert_eq!(store.profile(&scope).await.unwrap().open(&scope).unwrap().episodes, 2);
    // An erasure is not tried twice: it would find its own epoch and call it a conflict.
    proxy.half_close().await;
    assert_eq!(store.recall(&scope, &RecallQuery::new("falcon", 9)).await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_erasure_whose_answer_is_lost_says_so_and_was_done() {
    let (proxy, store) = through().await;
    let namespace = fresh_namespace();
    let scope = user(&namespace, "ada", 0);
    store.remember(&scope, turn(1, "s", 1, "falcon")).await.unwrap();
    proxy.cut_after(Direction::Replies, 0);
    let part = store.forget(&user(&namespace, "ada", 1), &Erase::before(at(0))).await;
    assert!(part.is_ok(), "what it reads first is safe to read again: {part:?}");
    // The server has to know the script, or its first answer is that it does not.
    store.forget(&user(&namespace, "bob", 1), &Erase::everything()).await.unwrap();
    // The note is answered (":1\r\n"), the erasure is not.
    proxy.cut_after(Direction::Replies, 4);
    let lost = store.forget(&user(&namespace, "ada", 2), &Erase::everything()).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Transport);
    assert!(lost.is_retryable());
    assert!(store.recall(&scope, &RecallQuery::new("", 9)).await.unwrap().is_empty());
    assert_eq!(store.epoch(&scope).await.unwrap().get(), 2);
}

/// Written again, it would undo what another program wrote in between.
#[tokio::test]
async fn a_block_whose_answer_is_lost_is_not_written_again() {
    let (proxy, store) = through().await;
    let scope = user(&fresh_namespace(), "ada", 0);
    // The server has to know the script, or its first answer is that it does not.
    store.put_block(&scope, PutBlock::new("b", "first", at(1))).await.unwrap();
    for block in [PutBlock::new("b", "second", at(2)), PutBlock::remove("b", at(3))] {
        proxy.cut_after(Direction::Replies, 0);
        let lost = store.put_block(&scope, block).await.unwrap_err();
        assert!(lost.kind() == ErrorKind::Transport && lost.is_retryable(), "{lost:?}");
        // A read is tried again, and finds that it was done.
        let blocks = store.blocks(&scope).await.unwrap();
        assert!(blocks.iter().all(|block| &*block.clone().open(&scope).unwrap().content == "second"));
    }
    assert!(store.blocks(&scope).await.unwrap().is_empty(), "both were done");
}

#[tokio::test]
async fn a_dead_link_is_a_timeout_and_is_left_for_a_new_one() {
    let (proxy, store) = through().await;
    let scope = user(&fresh_namespace(), "ada", 0);
    proxy.stall(true);
    let late = store.remember(&scope, turn(1, "s", 1, "falcon")).await.unwrap_err();
    assert!(late.kind() == ErrorKind::Timeout && late.is_retryable(), "{late:?}");
    let before = proxy.connections();
    proxy.stall(false);
    store.remember(&scope, turn(1, "s", 1, "falcon")).await.unwrap();
    assert_eq!(proxy.connections(), before + 1, "it was not the dead link that answered");
    proxy.refuse(true);
    proxy.cut().await;
    let refused = store.recall(&scope, &RecallQuery::new("", 9)).await.unwrap_err();
    assert!(refused.is_retryable(), "{refused:?}");
    assert!(!store.ready().await.ready);
    proxy.refuse(false);
    let mut back = Err(refused);
    for _ in 0..100 {
        back = store.recall(&scope, &RecallQuery::new("", 9)).await;
        if back.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(back.unwrap().len(), 1);
    assert!(store.ready().await.ready);
}

#[tokio::test]
async fn writes_that_are_dropped_at_any_moment_are_whole_or_absent() {
    let store = connect("redis-plain").await;
    let namespace = fresh_namespace();
    for n in 0..60_u64 {
        let scope = user(&namespace, &format!("u{n}"), 0);
        let work = async {
            store.remember(&scope, turn(1, "s", 1, "falcon")).await?;
            store.put_block(&scope, PutBlock::new("b", "x", at(1))).await?;
            store.facts().unwrap().assert(&scope, NewFact::new("me", "is", "x", at(1))).await?;
            store.forget(&user(&namespace, &format!("u{n}"), 1), &Erase::before(at(2))).await.map(drop)
        };
        let _dropped = tokio::time::timeout(Duration::from_micros(n * 25), work).await;
        let profile = store.profile(&scope).await.unwrap().open(&scope).unwrap();
        let words = store.recall(&scope, &RecallQuery::new("falcon", 9)).await.unwrap().len() as u64;
        let newest = store.recall(&scope, &RecallQuery::new("", 9)).await.unwrap().len() as u64;
        let epoch = store.epoch(&scope).await.unwrap().get();
        let all = (profile.episodes, profile.blocks, profile.facts, epoch);
        assert!(words == newest && words == profile.episodes, "every index says the same");
        assert!(
            [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (0, 0, 0, 1)].contains(&all),
            "{all:?}"
        );
    }
}

async fn set(url: &str, name: &str, value: &str) {
    redis::cmd("CONFIG").arg("SET").arg(name).arg(value).exec_async(&mut raw(url).await).await.unwrap();
}

#[tokio::test]
async fn a_full_server_refuses_a_write_whole_and_still_erases() {
    for search in [true, false] {
        let own = OwnRedis::start(search).await;
        let store = RedisMemory::connect(RedisMemoryConfig::new(own.url())).await.unwrap();
        let namespace = fresh_namespace();
        let scope = user(&namespace, "ada", 0);
        store.remember(&scope, turn(1, "s", 1, "falcon")).await.unwrap();
        set(own.url(), "maxmemory", "1").await;
        let refusals: [Option<Error>; 3] = [
            store.remember(&scope, turn(2, "s", 1, "falcon")).await.err(),
            store.put_block(&scope, PutBlock::new("b", "x", at(1))).await.err(),
            store.facts().unwrap().assert(&scope, NewFact::new("me", "is", "x", at(1))).await.err(),
        ];
        for refusal in refusals {
            let refusal = refusal.expect("there is no room");
            assert!(matches!(refusal.kind(), ErrorKind::Capacity | ErrorKind::Overloaded), "{refusal:?}");
        }
        let profile = store.profile(&scope).await.unwrap().open(&scope).unwrap();
        assert_eq!((profile.episodes, profile.blocks, profile.facts), (1, 0, 0));
        let part = store.forget(&user(&namespace, "ada", 1), &Erase::before(at(9))).await.unwrap();
        assert_eq!(part.total(), 1);
        store.forget(&user(&namespace, "ada", 2), &Erase::everything()).await.unwrap();
        set(own.url(), "maxmemory", "0").await;
        store.remember(&user(&namespace, "ada", 2), turn(2, "s", 1, "falcon")).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_killed_has_what_it_promised_and_is_found_again() {
    let mut own = OwnRedis::start(true).await;
    let store = RedisMemory::connect(RedisMemoryConfig::new(own.url())).await.unwrap();
    let namespace = fresh_namespace();
    let scope = user(&namespace, "ada", 0);
    store.remember(&scope, turn(1, "s", 1, "falcon")).await.unwrap();
    store.forget(&user(&namespace, "bob", 3), &Erase::everything()).await.unwrap();
    own.kill9();
    let gone = store.recall(&scope, &RecallQuery::new("", 9)).await.unwrap_err();
    assert!(gone.is_retryable(), "{gone:?}");
    own.restart().await;
    let mut found = Err(gone);
    for _ in 0..100 {
        found = store.recall(&scope, &RecallQuery::new("falcon", 9)).await;
        if found.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(found.unwrap().len(), 1);
    let late = store.remember(&user(&namespace, "bob", 2), turn(1, "s", 1, "late")).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Erased);
}

#[tokio::test]
async fn a_wrong_password_is_a_matter_of_configuration_and_is_not_shown() {
    let own = OwnRedis::start(false).await;
    set(own.url(), "requirepass", "right").await;
    for login in ["", ":hunter2@", "user:hunter2@"] {
        let url = own.url().replace("redis://", &format!("redis://{login}"));
        let config = RedisMemoryConfig::new(url);
        assert!(!format!("{config:?}").contains("hunter2"));
        let error = RedisMemory::connect(config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        let mut shown = format!("{error} {error:?}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            shown.push_str(&format!("{cause} {cause:?}"));
            source = cause.source();
        }
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let right = own.url().replace("redis://", "redis://:right@");
    let store = RedisMemory::connect(RedisMemoryConfig::new(right)).await.unwrap();
    assert!(!format!("{store:?}").contains("right"));
}
