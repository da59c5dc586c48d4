//! The in-process memory against a naive oracle, and law by law.

mod differential;
mod laws;

use loomflow_core::danger::assume_scope;
use loomflow_core::{
    Epoch, Identity, Message, Namespace, NewEpisode, RunId, Scope, SessionId, Timestamp, UserId,
};

/// Names that a careless key or comparison would mix up.
const HOSTILE: [&str; 8] = [
    "user_1",
    "user_10",
    "User_1",
    "user_1:k",
    "caf\u{e9}",
    "cafe\u{301}",
    "us\u{435}r_1",
    "a{b}|c\\d' OR 1=1 --",
];

fn scope(user: &str, epoch: u64) -> Scope {
    let identity = Identity::User(UserId::new(user).unwrap());
    assume_scope(Namespace::default(), identity, Epoch::new(epoch))
}

fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn time(at: i64) -> Timestamp {
    Timestamp::from_micros(at)
}

fn turn(run: u128, in_session: &str, at: i64, text: &str) -> NewEpisode {
    let messages = [Message::user(text), Message::assistant("ok")];
    NewEpisode::new(RunId::from_u128(run), session(in_session), time(at), messages)
}
