//! The file: what survives, who else sees it, what is refused, what a full disk does, and that erased bytes are gone.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{Folder, at, owner, plant_block, plant_episode, plant_fact, raw, scope, session, turn};
use futures_util::TryStreamExt as _;
use futures_util::future::join_all;
use loomflow_core::{
    Cardinality, Embedding, Epoch, Erase, ErrorKind, FactQuery, FactStore as _, HistoryLimit,
    MemoryStore as _, NewFact, PutBlock, RecallQuery, Scope, TenantData as _,
};
use loomflow_memory_sqlite::{Durability, SqliteMemory, SqliteMemoryConfig};
use rand::RngExt as _;

async fn open(folder: &Folder) -> SqliteMemory {
    SqliteMemory::connect(SqliteMemoryConfig::new(folder.file())).await.unwrap()
}

async fn said(store: &SqliteMemory, scope: &Scope) -> Vec<String> {
    let history = store.history(scope, &session("s"), HistoryLimit::messages(1_000)).await.unwrap();
    history.into_iter().map(|m| m.open(scope).unwrap().text.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_survives_a_restart_and_is_seen_by_others() {
    let folder = Folder::new();
    let alice = scope("alice", 3);
    let store = open(&folder).await;
    store.forget(&alice, &Erase::everything()).await.unwrap();
    let vector = Embedding::new("m", [0.25, -1.5]);
    let episode = turn(1, "where is it?").with_embedding(vector.clone());
    store.remember(&alice, episode.clone()).await.unwrap();
    store.put_block(&alice, PutBlock::new("note", "text", at(2)).with_order(7)).await.unwrap();
    let fact = NewFact::new("ada", "livesIn", "Oslo", at(3)).with_sources(vec![episode.run.into()]);
    store.assert(&alice, fact).await.unwrap();
    let all = async |store: &SqliteMemory| {
        let query = RecallQuery::new("where", 10).with_embedding(vector.clone());
        let recalled = store.recall(&alice, &query).await.unwrap();
        let facts = store.query(&alice, &FactQuery::all(10)).await.unwrap();
        let export: Vec<_> = store.export(&alice).await.unwrap().try_collect().await.unwrap();
        (recalled, facts, store.blocks(&alice).await.unwrap(), export, store.epoch(&alice).await.unwrap())
    };
    let before = all(&store).await;
    assert_eq!((before.0.len(), before.1.len(), before.2.len(), before.3.len()), (1, 1, 1, 3));
    assert_eq!(before.4, Epoch::new(3));
    let second = open(&folder).await;
    assert_eq!(all(&second).await, before, "a second connection sees what was acknowledged");
    drop((store, second));
    assert_eq!(all(&open(&folder).await).await, before, "it is all there after a restart");
}

const CHILD: &str = "LOOMFLOW_SQLITE_CHILD";

/// What another process does: it erases alice's first words and adds its own. Nothing unless its parent names a file.
#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::disallowed_methods, reason = "the parent names the file")]
async fn child_erases_and_remembers() {
    if let Some(path) = std::env::var_os(CHILD) {
        let store = SqliteMemory::connect(SqliteMemoryConfig::new(path)).await.unwrap();
        let alice = scope("alice", 1);
        store.forget(&alice, &Erase::before(at(5))).await.unwrap();
        for n in 0..20 {
            store.remember(&alice, turn(10 + n, &format!("child {n}"))).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_write_one_file() {
    let folder = Folder::new();
    let store = Arc::new(open(&folder).await);
    store.remember(&scope("alice", 0), turn(1, "old")).await.unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_erases_and_remembers"])
        .env(CHILD, folder.file())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let bob = scope("bob", 0);
    let mut n = 0;
    let status = loop {
        store.remember(&bob, turn(n, &format!("bob {n}"))).await.unwrap();
        n += 1;
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
    };
    assert!(status.success());
    assert_eq!(said(&store, &bob).await.len(), 2 * usize::try_from(n).unwrap());
    let alice = scope("alice", 1);
    let of_child = said(&store, &alice).await;
    assert_eq!((of_child.len(), of_child[0].as_str()), (40, "child 0"));
    let late = store.remember(&scope("alice", 0), turn(2, "late")).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Erased, "the other process's erasure counts here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_refuses_and_can_be_emptied() {
    let folder = Folder::new();
    let config = SqliteMemoryConfig::new(folder.file()).with_max_bytes(400 << 10);
    let store = SqliteMemory::connect(config).await.unwrap();
    let alice = scope("alice", 0);
    let mut kept = 0;
    let full = loop {
        match store.remember(&alice, turn(kept, &"word ".repeat(1_000))).await {
            Ok(_) => kept += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(full.kind(), ErrorKind::Capacity, "{full}");
    assert!(kept > 3);
    assert_eq!(said(&store, &alice).await.len(), 2 * usize::try_from(kept).unwrap());
    assert!(store.ready().await.ready);
    store.forget(&scope("alice", 1), &Erase::everything()).await.unwrap();
    store.remember(&scope("alice", 1), turn(1, "small")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_is_refused() {
    let folder = Folder::new();
    drop(open(&folder).await);
    let mut conn = raw(&folder.file()).await;
    sqlx::query("UPDATE loomflow_schema SET version = 9").execute(&mut conn).await.unwrap();
    for migrate in [true, false] {
        let config = SqliteMemoryConfig::new(folder.file()).with_migrate(migrate);
        let error = SqliteMemory::connect(config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("version 9"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_migrated_beforehand() {
    let folder = Folder::new();
    let config = SqliteMemoryConfig::new(folder.file()).with_migrate(false);
    assert_eq!(SqliteMemory::connect(config.clone()).await.unwrap_err().kind(), ErrorKind::Config);
    SqliteMemory::migrate(&config).await.unwrap();
    SqliteMemory::connect(config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_from_before_time_began_is_exported_once() {
    let folder = Folder::new();
    let store = open(&folder).await;
    let alice = scope("alice", 0);
    for n in 0..150 {
        let mut turn = turn(n / 3, "same moment");
        if n == 0 {
            turn.at = loomflow_core::Timestamp::from_micros(i64::MIN);
        }
        store.remember(&alice, turn).await.unwrap();
        store.assert(&alice, NewFact::new("a", "likes", n.to_string(), at(n / 3))).await.unwrap();
        store.put_block(&alice, PutBlock::new(n.to_string(), "text", at(n / 3))).await.unwrap();
    }
    let export: Vec<_> = store.export(&alice).await.unwrap().try_collect().await.unwrap();
    assert_eq!(export.len(), 450, "pages neither repeat nor skip");
    let times: Vec<String> = export
        .into_iter()
        .map(|item| {
            let item = item.open(&alice).unwrap();
            let time =
                ["at", "known_from", "updated_at"].into_iter().find_map(|name| item.data.get(name).cloned());
            time.unwrap().as_str().unwrap().to_owned()
        })
        .skip(1)
        .collect();
    assert!(times.is_sorted(), "oldest first over all kinds");
}

fn contains(bytes: &[u8], text: &str) -> bool {
    memchr::memmem::find(bytes, text.as_bytes()).is_some()
}

/// Whose canaries are in the files.
fn canaries(folder: &Folder) -> HashSet<usize> {
    let bytes = folder.bytes();
    let found = memchr::memmem::find_iter(&bytes, "canary_");
    // What is cut off is no number, and the rest of it was overwritten.
    found.filter_map(|at| str::from_utf8(bytes.get(at + 7..at + 13)?).ok()?.parse().ok()).collect()
}

/// A text of any length with the user's canary in it, at either end.
fn text(user: usize) -> String {
    let filler = "lorem ".repeat(rand::rng().random_range(0..3) * rand::rng().random_range(0..50));
    if rand::random() { format!("canary_{user:06} {filler}") } else { format!("{filler} canary_{user:06}") }
}

/// What a user says, in every place that holds words, ids included.
async fn say(store: &SqliteMemory, user: usize, n: i64) {
    let scope = scope(&format!("canary_{user:06}"), 0);
    let mut turn = turn(n, &text(user));
    turn.session = session(&format!("canary_{user:06}"));
    let vector = Embedding::new("m", [1.0, 2.0]);
    if n % 2 == 0 {
        turn = turn.with_embedding(vector.clone());
    }
    store.remember(&scope, turn).await.unwrap();
    let name = format!("canary_{user:06} {}", n % 2);
    store.put_block(&scope, PutBlock::new(name, text(user), at(n))).await.unwrap();
    let fact = NewFact::new(text(user), "likes", text(user), at(n)).with_cardinality(Cardinality::One);
    store.assert(&scope, fact.clone()).await.unwrap();
    store.assert(&scope, fact.with_embedding(vector)).await.unwrap();
}

/// Many users' rows are mixed, so that what a tree moves when it splits or merges pages is somebody's who stays for now.
#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_what_was_erased_are_gone_from_every_file() {
    const USERS: usize = 200;
    let folder = Folder::new();
    let config = SqliteMemoryConfig::new(folder.file()).with_durability(Durability::Normal);
    let store = Arc::new(SqliteMemory::connect(config).await.unwrap());
    for n in 0..4 {
        join_all((0..USERS).map(|user| say(&store, user, n))).await;
    }
    assert_eq!(canaries(&folder).len(), USERS);
    let mut order: Vec<usize> = (0..USERS).collect();
    order.sort_by_cached_key(|_| rand::random::<u64>());
    let mut gone = HashSet::new();
    for few in order.chunks(5) {
        for user in few {
            let scope = scope(&format!("canary_{user:06}"), 1);
            let what = if user % 2 == 0 { Erase::everything() } else { Erase::before(at(100)) };
            store.forget(&scope, &what).await.unwrap();
            gone.insert(*user);
        }
        let left = canaries(&folder);
        assert_eq!(
            left.intersection(&gone).count(),
            0,
            "users are still in a file; {} have left",
            gone.len()
        );
        assert_eq!(left.len(), USERS - gone.len(), "and nobody else left");
    }
}

/// Everything a user has, and how large the file is.
async fn held(store: &SqliteMemory, user: usize) -> Vec<serde_json::Value> {
    let scope = scope(&format!("canary_{user:06}"), 0);
    let items: Vec<_> = store.export(&scope).await.unwrap().try_collect().await.unwrap();
    items.into_iter().map(|item| item.open(&scope).unwrap().data).collect()
}

/// Compacting gives back what was erased, keeps what was not, and leaves no copies that a later erasure would miss.
#[tokio::test(flavor = "multi_thread")]
async fn compacting_shrinks_the_file_and_keeps_the_rest() {
    const USERS: usize = 90;
    let folder = Folder::new();
    let config = SqliteMemoryConfig::new(folder.file()).with_durability(Durability::Normal);
    let store = Arc::new(SqliteMemory::connect(config).await.unwrap());
    for n in 0..4 {
        join_all((0..USERS).map(|user| say(&store, user, n))).await;
    }
    let forget = async |user: usize| {
        let scope = scope(&format!("canary_{user:06}"), 1);
        store.forget(&scope, &Erase::everything()).await.unwrap();
    };
    let stays = |user: &usize| user.is_multiple_of(3);
    for user in (0..USERS).filter(|user| !stays(user)) {
        forget(user).await;
    }
    let size = || std::fs::metadata(folder.file()).unwrap().len();
    let kept: Vec<usize> = (0..USERS).filter(stays).collect();
    let mut before = Vec::new();
    for user in &kept {
        before.push(held(&store, *user).await);
    }
    let large = size();
    let (late, compacted) = tokio::join!(say(&store, kept[0], 9), store.compact());
    compacted.unwrap();
    let () = late;
    assert!(size() * 2 < large, "{} of {large} bytes are left", size());
    for (user, before) in kept.iter().zip(&before).skip(1) {
        assert_eq!(held(&store, *user).await, *before);
    }
    assert!(held(&store, kept[0]).await.len() > before[0].len(), "what was written meanwhile is there");
    assert_eq!(canaries(&folder), kept.iter().copied().collect());
    store.compact().await.expect("it can be done again");
    for user in &kept {
        say(&store, *user, 11).await;
    }
    for (n, user) in kept.iter().enumerate() {
        forget(*user).await;
        assert_eq!(canaries(&folder), kept[n + 1..].iter().copied().collect(), "compacting left no copies");
    }
}

/// What is filed under a user and names another is neither reinforced, replaced nor erased as the user's.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_or_an_erasure_does_not_take_over_a_foreign_row() {
    let mallory = owner("mallory");
    for kind in ["fact", "block", "episode"] {
        let folder = Folder::new();
        let store = open(&folder).await;
        let alice = scope("alice", 0);
        let mut conn = raw(&folder.file()).await;
        let fact = NewFact::new("me", "said", "falcon", at(1));
        let block = PutBlock::new("b", "falcon", at(1));
        let written = match kind {
            "fact" => {
                plant_fact(&mut conn, alice.owner(), &mallory, &fact).await;
                let vector = Embedding::new("m", [1.0]);
                store.assert(&alice, fact.clone().with_embedding(vector)).await.map(drop)
            }
            "block" => {
                plant_block(&mut conn, alice.owner(), &mallory, &block).await;
                store.put_block(&alice, block).await
            }
            _ => {
                plant_episode(&mut conn, alice.owner(), &mallory, &turn(1, "falcon")).await;
                Err(loomflow_core::Error::new(ErrorKind::IsolationViolation, "only erasures touch another's"))
            }
        };
        assert_eq!(written.unwrap_err().kind(), ErrorKind::IsolationViolation, "{kind}");
        let erased = store.forget(&scope("alice", 1), &Erase::everything()).await;
        assert_eq!(erased.unwrap_err().kind(), ErrorKind::IsolationViolation, "{kind}");
        assert_eq!(store.epoch(&alice).await.unwrap(), Epoch::ZERO, "nothing was done");
        assert!(contains(&folder.bytes(), "mallory"), "{kind}");
    }
}

/// Pages of one session, of which many episodes are of one moment, neither repeat nor skip.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_session_is_read_in_pages() {
    let folder = Folder::new();
    let store = open(&folder).await;
    let alice = scope("alice", 0);
    for n in 0..200 {
        store.remember(&alice, turn(n / 50, &format!("{n}"))).await.unwrap();
    }
    let said = said(&store, &alice).await;
    let all: HashSet<&str> = said.iter().step_by(2).map(String::as_str).collect();
    assert_eq!((said.len(), all.len()), (400, 200));
    let last = store.history(&alice, &session("s"), HistoryLimit::messages(300)).await.unwrap();
    let last: Vec<String> = last.into_iter().map(|m| m.open(&alice).unwrap().text.to_string()).collect();
    assert_eq!(last, said[100..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn erased_bytes_leave_the_log_once_the_reader_in_their_way_is_done() {
    let folder = Folder::new();
    let store = open(&folder).await;
    store.remember(&scope("alice", 0), turn(1, "canaryinthelog")).await.unwrap();
    let mut reader = raw(&folder.file()).await;
    sqlx::query("BEGIN").execute(&mut reader).await.unwrap();
    sqlx::query("SELECT count(*) FROM memory_episodes").execute(&mut reader).await.unwrap();
    store.forget(&scope("alice", 1), &Erase::everything()).await.unwrap();
    assert!(contains(&folder.bytes(), "canaryinthelog"), "the reader still looks at it");
    sqlx::query("COMMIT").execute(&mut reader).await.unwrap();
    while contains(&folder.bytes(), "canaryinthelog") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
