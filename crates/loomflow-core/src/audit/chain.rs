//! The writer of a chained audit log, without I/O: one entry is one line, MACed over its very bytes.
//!
//! A line (without its newline) ends in exactly 74 bytes: `,"mac":"`, 64 lower-case hex digits, `"}`. The MAC is
//! HMAC-SHA-256 over everything before those bytes followed by `}`. Each entry names the MAC of the one before it.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::audit::scan::is_object;
use crate::audit::{AuditEvent, line::TAIL};
use crate::error::{Error, Result};
use crate::ids::Base32;
use crate::redact::{push_u64, write_string};
use crate::scope::Owner;
use crate::{Identity, Namespace, Secret};

/// The deepest payload that is kept as JSON, its own braces included.
const MAX_PAYLOAD_DEPTH: usize = 64;
/// A buffer that one huge entry made large is given back.
const KEEP_BUFFER: usize = 64 * 1024;

/// The key an audit log is MACed with, under the name its entries give.
///
/// The key itself is never printed. It is not `Clone`: share it as an `Arc`.
pub struct AuditKey {
    id: String,
    // Keyed once; cloning the keyed state saves two compressions an entry.
    keyed: Hmac<Sha256>,
}

impl AuditKey {
    /// A key of at least 32 bytes, named `id`: 1..=64 of `A-Z a-z 0-9 _ . -`, because a key file writes `id:hex`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a shorter key or another name; the message
    /// says nothing about the key but its length.
    pub fn new(id: impl Into<String>, key: Secret<Vec<u8>>) -> Result<Self> {
        let id = id.into();
        if !is_token(&id, 64) {
            return Err(Error::invalid_input(format!(
                "{id:?} is not the name of an audit key: use 1 to 64 of A-Z a-z 0-9 _ . -"
            )));
        }
        let bytes = key.expose();
        if bytes.len() < 32 {
            return Err(Error::invalid_input(format!(
                "audit key {id:?} has {} bytes; at least 32 are required",
                bytes.len()
            )));
        }
        let keyed = Hmac::<Sha256>::new_from_slice(bytes).expect("HMAC takes a key of any length");
        Ok(Self { id, keyed })
    }

    /// A key written in hex, two digits a byte, as a key file holds it.
    ///
    /// # Errors
    ///
    /// As [`AuditKey::new`], and for text that is not hex.
    pub fn from_hex(id: impl Into<String>, hex: &Secret<String>) -> Result<Self> {
        let id = id.into();
        match decode_hex(hex.expose()) {
            Some(bytes) => Self::new(id, Secret::new(bytes)),
            None => Err(Error::invalid_input(format!(
                "audit key {id:?} is not hex: give two digits 0-9 a-f for each byte"
            ))),
        }
    }

    /// The name entries give.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Ends `body`, a JSON object without its closing brace, with its MAC. Returns the MAC.
    ///
    /// Entries, checkpoints and anchors are all ended this way.
    pub fn end_line(&self, body: &mut String) -> [u8; 32] {
        let mac = self.mac(body.as_bytes());
        body.push_str(",\"mac\":\"");
        push_hex(body, &mac);
        body.push_str("\"}");
        mac
    }

    /// Whether a line, without its newline, ends with the MAC that this key gives it. In constant time.
    #[must_use]
    pub fn matches(&self, line: &[u8]) -> bool {
        let Some((body, mac)) = crate::audit::line::split_mac(line) else { return false };
        let mut state = self.keyed.clone();
        state.update(body);
        state.update(b"}");
        state.verify_slice(&mac).is_ok()
    }

    pub(super) fn mac(&self, body: &[u8]) -> [u8; 32] {
        let mut state = self.keyed.clone();
        state.update(body);
        state.update(b"}");
        state.finalize().into_bytes().into()
    }
}

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// An entry that was made and is still to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SealedLine {
    /// Its place in the log.
    pub seq: u64,
    /// The line, without its newline.
    pub line: Box<str>,
    /// Its MAC, which the next entry names.
    pub mac: [u8; 32],
}

/// Where a log stands: what the next entry is chained to.
///
/// Sealing moves it forward at once. A log whose write failed goes back with [`AuditChain::resume`] at the place it
/// remembered, and only if it knows that nothing of the line was kept.
#[derive(Debug)]
pub struct AuditChain {
    log: String,
    next: u64,
    prev: [u8; 32],
    buffer: String,
}

impl AuditChain {
    /// The beginning of a new log with a random id.
    #[must_use]
    pub fn new() -> Self {
        Self::at(format!("log_{}", Base32(rand::random())), 1, [0; 32])
    }

    /// Goes on with the log `log` at the place `next`, after the entry whose MAC is `prev` (zeros before the first).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for an id that is not 1..=128 of `A-Z a-z 0-9 _ . -`,
    /// and for the place 0.
    pub fn resume(log: impl Into<String>, next: u64, prev: [u8; 32]) -> Result<Self> {
        let log = log.into();
        if !is_token(&log, 128) {
            return Err(Error::invalid_input(format!(
                "{log:?} is not the id of an audit log: use 1 to 128 of A-Z a-z 0-9 _ . -"
            )));
        }
        if next == 0 {
            return Err(Error::invalid_input("an audit log begins at 1"));
        }
        Ok(Self::at(log, next, prev))
    }

    fn at(log: String, next: u64, prev: [u8; 32]) -> Self {
        Self { log, next, prev, buffer: String::new() }
    }

    /// The log's id.
    #[must_use]
    pub fn log_id(&self) -> &str {
        &self.log
    }

    /// The place the next entry will have.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// The MAC of the last entry; zeros before the first.
    #[must_use]
    pub fn head(&self) -> [u8; 32] {
        self.prev
    }

    /// Makes the entry for `event` of `owner`.
    ///
    /// A payload that is not one JSON object on one line, or names a member twice, or nests deeper than 64, would make
    /// the entry invalid for a reader: its text is kept instead, as `{"text":"..."}`.
    pub fn seal(&mut self, key: &AuditKey, owner: &Owner, event: &AuditEvent) -> SealedLine {
        self.seal_for(key, owner.namespace(), Some(owner.identity()), event)
    }

    /// Makes an entry that belongs to no tenant: the log's own records, such as a rotated key or a checkpoint.
    pub fn seal_system(&mut self, key: &AuditKey, namespace: &Namespace, event: &AuditEvent) -> SealedLine {
        self.seal_for(key, namespace, None, event)
    }

    fn seal_for(
        &mut self,
        key: &AuditKey,
        namespace: &Namespace,
        identity: Option<&Identity>,
        event: &AuditEvent,
    ) -> SealedLine {
        let seq = self.next;
        let mut out = std::mem::take(&mut self.buffer);
        out.reserve(event.payload.get().len() + 640);
        out.push_str("{\"v\":1,\"log\":\"");
        out.push_str(&self.log);
        out.push_str("\",\"seq\":");
        push_u64(&mut out, seq);
        out.push_str(",\"at\":\"");
        event.at.write_rfc3339(&mut out);
        out.push_str("\",\"namespace\":");
        write_string(&mut out, namespace.as_str());
        push_identity(&mut out, identity);
        push_event(&mut out, event);
        out.push_str(",\"key_id\":\"");
        out.push_str(&key.id);
        out.push_str("\",\"prev\":\"");
        push_hex(&mut out, &self.prev);
        out.push('"');
        let mac = key.end_line(&mut out);
        self.next = seq.saturating_add(1);
        self.prev = mac;
        let line = Box::from(out.as_str());
        out.clear();
        out.shrink_to(KEEP_BUFFER);
        self.buffer = out;
        SealedLine { seq, line, mac }
    }
}

impl Default for AuditChain {
    fn default() -> Self {
        Self::new()
    }
}

fn push_identity(out: &mut String, identity: Option<&Identity>) {
    out.push_str(",\"user_id\":");
    match identity {
        Some(Identity::User(id)) => write_string(out, id.as_str()),
        Some(Identity::Anonymous) => out.push_str("null,\"anonymous\":true"),
        None => out.push_str("null"),
    }
}

fn push_event(out: &mut String, event: &AuditEvent) {
    out.push_str(",\"session_id\":");
    match &event.session {
        Some(session) => write_string(out, session.as_str()),
        None => out.push_str("null"),
    }
    out.push_str(",\"run_id\":");
    match event.run {
        Some(run) => {
            out.push('"');
            run.push_to(out);
            out.push('"');
        }
        None => out.push_str("null"),
    }
    out.push_str(",\"actor\":\"");
    out.push_str(event.actor.as_str());
    out.push_str("\",\"action\":\"");
    out.push_str(event.action.as_str());
    out.push_str("\",\"payload\":");
    let payload = event.payload.get();
    if is_object(payload, MAX_PAYLOAD_DEPTH) {
        out.push_str(payload);
    } else {
        out.push_str("{\"text\":");
        write_string(out, payload);
        out.push('}');
    }
}

fn push_hex(out: &mut String, bytes: &[u8; 32]) {
    let mut text = [0_u8; 64];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
        pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    out.push_str(std::str::from_utf8(&text).expect("hex digits are ASCII"));
}

pub(super) fn hex(bytes: &[u8; 32]) -> String {
    let mut out = String::with_capacity(64);
    push_hex(&mut out, bytes);
    out
}

fn is_token(text: &str, max: usize) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=max).contains(&text.len()) && text.bytes().all(allowed)
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| {
            let digit = |b: u8| char::from(b).to_digit(16);
            u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
        })
        .collect()
}

const _: () = assert!(TAIL == 8 + 64 + 2);
