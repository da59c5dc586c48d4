//! What recall and history cost one tenant of the in-process memory as the tenant's own episodes grow, with 1,000 other
//! tenants beside, who must not matter.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt as _;
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    Embedding, Epoch, HistoryLimit, Identity, MemoryStore, Message, Namespace, NewEpisode, RecallQuery,
    RunId, Scope, SessionId, Timestamp, UserId,
};
use loomflow_local::{HashEmbedder, InMemoryMemory};

fn scope(user: &str) -> Scope {
    assume_scope(Namespace::default(), Identity::User(UserId::new(user).unwrap()), Epoch::ZERO)
}

fn embedding(text: &str) -> Embedding {
    Embedding::new("hash-256", HashEmbedder::new().vector(text))
}

fn fill(memory: &InMemoryMemory, scope: &Scope, episodes: u128, from: u128) {
    for n in 0..episodes {
        let text = format!("order {n} of a customer who asks about parcel {}", n % 17);
        let messages = vec![Message::user(text.clone()), Message::assistant("it is on its way")];
        let at = Timestamp::from_micros(i64::try_from(n).unwrap());
        let episode = NewEpisode::new(RunId::from_u128(from + n), SessionId::new("s").unwrap(), at, messages);
        memory.remember(scope, episode.with_embedding(embedding(&text))).now_or_never().unwrap().unwrap();
    }
}

fn bench(c: &mut Criterion) {
    for episodes in [10_u128, 100, 1_000] {
        let memory = InMemoryMemory::new();
        for other in 0..1_000_u128 {
            fill(&memory, &scope(&format!("other_{other}")), 5, 1_000_000 + other * 5);
        }
        let user = scope("user_1");
        fill(&memory, &user, episodes, 0);
        let words = RecallQuery::new("where is parcel 5", 3);
        let both = words.clone().with_embedding(embedding("where is parcel 5"));
        for (name, query) in [("words", &words), ("words_and_vectors", &both)] {
            c.bench_function(&format!("recall/{name}/{episodes}_episodes"), |b| {
                b.iter(|| memory.recall(&user, black_box(query)).now_or_never().unwrap().unwrap());
            });
        }
        let session = SessionId::new("s").unwrap();
        c.bench_function(&format!("history/{episodes}_episodes"), |b| {
            b.iter(|| {
                let limit = HistoryLimit::messages(20);
                memory.history(&user, black_box(&session), limit).now_or_never().unwrap().unwrap()
            });
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
