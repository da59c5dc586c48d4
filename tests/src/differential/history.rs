//! What a history is made of: operations on a few tenants, with few values, so that they meet.

use std::fmt;

use loomflow_core::danger::assume_scope;
use loomflow_core::{Embedding, Epoch, Identity, Namespace, Scope, SessionId, Timestamp, UserId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::{option, sample};

/// (what follows the case's namespace, user). A careless key or comparison takes two of them for one.
const TENANTS: [(&str, Option<&str>); 13] = [
    ("", None),
    ("", Some("user_1")),
    ("", Some("user_10")),
    ("", Some("User_1")),
    ("", Some("user_1:k")),
    ("", Some("*")),
    ("", Some("caf\u{e9}")),
    ("", Some("cafe\u{301}")),
    ("", Some("us\u{435}r_1")),
    ("", Some("a{b}|c\\d' OR 1=1 --")),
    ("", Some("puser_1")),
    ("p", Some("user_1")),
    ("p", None),
];

pub(super) const WORDS: [&str; 11] = [
    "refund",
    "Refund",
    "order",
    "straße",
    "東京",
    "a-b",
    "order order",
    "!?",
    "late_42",
    "a\0b",
    "\u{130}d",
];
pub(super) const SESSIONS: [&str; 14] =
    ["s", "s2", "S", "s:*'{1}", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
/// Most is said in these; all of them together are more than a profile shows.
const USUAL_SESSIONS: usize = 4;
pub(super) const SUBJECTS: [&str; 2] = ["ada", "Ada"];
pub(super) const PREDICATES: [&str; 2] = ["likes", "lives_in"];
pub(super) const OBJECTS: [&str; 4] = ["tea", "coffee", "late order", "tea\0'; --"];
pub(super) const BLOCKS: [&str; 3] = ["b", "B", "b:*"];

/// How many runs there are; the ids of their episodes are sources, too.
const RUNS: u8 = 24;

/// A vector: of the usual model and length, or not.
#[derive(Clone, Copy, Debug)]
pub(super) enum Vector {
    /// Four components of -1, 0 and 1: what ties, ties exactly, with every way to compute a cosine.
    Usual([i8; 4]),
    OtherModel,
    OtherLength,
}

impl Vector {
    pub(super) fn embedding(self) -> Embedding {
        match self {
            Self::Usual(parts) => Embedding::new("m", parts.map(f32::from)),
            Self::OtherModel => Embedding::new("n", [1.0, 0.0, 0.0, 1.0]),
            Self::OtherLength => Embedding::new("m", [1.0, 0.0, 0.0]),
        }
    }
}

/// Input that every store refuses.
#[derive(Clone, Copy, Debug)]
pub(super) enum Nonsense {
    EmptyVector,
    NotFinite,
    QueryNotFinite,
    BlockName,
    EmptyObject,
    BlankSubject,
    BackwardValidity,
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    Remember {
        run: u8,
        session: usize,
        at: i64,
        words: Vec<usize>,
        tools: bool,
        vector: Option<Vector>,
    },
    Block {
        name: usize,
        content: Option<usize>,
        order: Option<u32>,
        at: i64,
    },
    Assert {
        triple: [usize; 3],
        one: bool,
        from: i64,
        length: Option<i64>,
        at: i64,
        sources: Vec<u8>,
        vector: Option<Vector>,
        confidence: u8,
    },
    Forget {
        session: Option<usize>,
        before: Option<i64>,
        /// How much newer its epoch is; 0 is refused.
        newer: u64,
    },
    Recall {
        words: Vec<usize>,
        vector: Option<Vector>,
        limit: usize,
        skip: Option<(usize, usize)>,
    },
    Facts {
        triple: [Option<usize>; 3],
        words: Option<Vec<usize>>,
        vector: Option<Vector>,
        valid: Option<i64>,
        known: Option<i64>,
        limit: usize,
    },
    History {
        session: usize,
        limit: usize,
    },
    Nonsense(Nonsense),
    Look,
}

/// One operation of one tenant.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// Modulo the number of tenants.
    user: usize,
    /// With a scope from before the last erasure, if there was one.
    pub(super) stale: bool,
    pub(super) op: Op,
}

/// Steps, and which tenants they are of.
#[derive(Clone)]
pub(super) struct History {
    tenants: usize,
    first: usize,
    pub(super) steps: Vec<Step>,
}

impl History {
    pub(super) fn operations(&self) -> u64 {
        self.steps.len() as u64
    }

    /// Which of all tenants a step is of.
    pub(super) fn tenant(&self, step: &Step) -> usize {
        (self.first + step.user % self.tenants) % TENANTS.len()
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let (suffix, user) = TENANTS[self.tenant(step)];
            let stale = if step.stale { " (stale)" } else { "" };
            writeln!(f, "  {user:?} of N{suffix}{stale}: {:?}", step.op)?;
        }
        Ok(())
    }
}

pub(super) fn all_tenants() -> std::ops::Range<usize> {
    0..TENANTS.len()
}

/// The scope of a tenant, in a case whose namespaces begin with `namespace`.
pub(super) fn scope(namespace: &str, tenant: usize, epoch: u64) -> Scope {
    let (suffix, user) = TENANTS[tenant];
    let namespace = Namespace::new(format!("{namespace}{suffix}")).expect("hex digits are a namespace");
    let identity = user.map_or(Identity::Anonymous, |name| {
        Identity::User(UserId::new(name).expect("hostile ids are valid ids"))
    });
    assume_scope(namespace, identity, Epoch::new(epoch))
}

/// Times in order: one before 1970, some at its first microseconds, and some that are still to come.
pub(super) fn time(at: i64) -> Timestamp {
    Timestamp::from_micros(match at {
        0 => -3_000_000,
        1..10 => at,
        _ => 4_000_000_000_000_000 + at,
    })
}

pub(super) fn session(at: usize) -> SessionId {
    SessionId::new(SESSIONS[at]).expect("hostile ids are valid ids")
}

pub(super) fn text(words: &[usize]) -> String {
    words.iter().map(|w| WORDS[*w]).collect::<Vec<_>>().join(" ")
}

pub(super) fn histories() -> impl Strategy<Value = History> {
    // Histories of one tenant are deep, those of many are about who is who.
    let tenants = prop_oneof![Just(1), Just(2), Just(3), Just(TENANTS.len())];
    (tenants, 0..TENANTS.len(), vec(step(), 0..90)).prop_map(|(tenants, first, steps)| History {
        tenants,
        first,
        steps,
    })
}

fn step() -> impl Strategy<Value = Step> {
    (0..TENANTS.len(), prop::bool::weighted(0.1), op()).prop_map(|(user, stale, op)| Step { user, stale, op })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        7 => remember(),
        1 => (0..BLOCKS.len(), option::of(0..OBJECTS.len()), option::of(0..3_u32), 0..12_i64)
            .prop_map(|(name, content, order, at)| Op::Block { name, content, order, at }),
        6 => assert(),
        1 => (
            option::weighted(0.6, 0..USUAL_SESSIONS),
            option::weighted(0.6, 0..14_i64),
            sample::select(vec![0_u64, 1, 1, 1, 3]),
        )
            .prop_map(|(session, before, newer)| Op::Forget { session, before, newer }),
        4 => (words(), vector(), limit(), option::of((0..USUAL_SESSIONS, 0..9_usize)))
            .prop_map(|(words, vector, limit, skip)| Op::Recall { words, vector, limit, skip }),
        3 => facts(),
        2 => (0..USUAL_SESSIONS, 0..12_usize).prop_map(|(session, limit)| Op::History { session, limit }),
        1 => nonsense().prop_map(Op::Nonsense),
        1 => Just(Op::Look),
    ]
}

fn remember() -> impl Strategy<Value = Op> {
    let session = prop_oneof![0..USUAL_SESSIONS, USUAL_SESSIONS..SESSIONS.len()];
    (0..RUNS, session, 0..12_i64, words(), any::<bool>(), vector()).prop_map(
        |(run, session, at, words, tools, vector)| Op::Remember { run, session, at, words, tools, vector },
    )
}

fn assert() -> impl Strategy<Value = Op> {
    let triple = (0..SUBJECTS.len(), 0..PREDICATES.len(), 0..OBJECTS.len());
    let validity = (0..12_i64, option::of(1..6_i64));
    // Believed since a moment that is past: what is believed now does not depend on the store's clock then.
    let provenance = (0..10_i64, vec(0..RUNS, 0..3), 0..=100_u8);
    (triple, any::<bool>(), validity, provenance, vector()).prop_map(
        |((s, p, o), one, (from, length), (at, mut sources, confidence), vector)| {
            sources.sort_unstable();
            sources.dedup();
            Op::Assert { triple: [s, p, o], one, from, length, at, sources, vector, confidence }
        },
    )
}

fn facts() -> impl Strategy<Value = Op> {
    let triple = (
        option::of(0..SUBJECTS.len()),
        option::weighted(0.3, 0..PREDICATES.len()),
        option::weighted(0.2, 0..OBJECTS.len()),
    );
    let times = (option::of(0..14_i64), option::of(0..14_i64));
    (triple, option::of(words()), vector(), times, limit()).prop_map(
        |((s, p, o), words, vector, (valid, known), limit)| Op::Facts {
            triple: [s, p, o],
            words,
            vector,
            valid,
            known,
            limit,
        },
    )
}

fn words() -> impl Strategy<Value = Vec<usize>> {
    vec(0..WORDS.len(), 0..5)
}

fn limit() -> impl Strategy<Value = usize> {
    sample::select(vec![0_usize, 1, 2, 3, 5, 8, 100])
}

/// Mostly of one kind, so that most histories are not about refusals.
fn vector() -> impl Strategy<Value = Option<Vector>> {
    let usual = || (-1..=1_i8, -1..=1_i8, -1..=1_i8, -1..=1_i8).prop_map(|(a, b, c, d)| [a, b, c, d]);
    prop_oneof![
        12 => Just(None),
        // Two axes only: nearly everything ties.
        6 => (-1..=1_i8, -1..=1_i8).prop_map(|(a, b)| Some(Vector::Usual([a, b, 0, 0]))),
        6 => usual().prop_map(|parts| Some(Vector::Usual(parts))),
        1 => sample::select(vec![Vector::OtherModel, Vector::OtherLength]).prop_map(Some),
    ]
}

fn nonsense() -> impl Strategy<Value = Nonsense> {
    use Nonsense::*;
    sample::select(vec![
        EmptyVector,
        NotFinite,
        QueryNotFinite,
        BlockName,
        EmptyObject,
        BlankSubject,
        BackwardValidity,
    ])
}
