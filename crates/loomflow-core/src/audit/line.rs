//! The reader of one audit line: what stands in the stored bytes, and whose it is.

use crate::audit::scan::{MAX_DEPTH, Member, members, string};
use crate::audit::{Action, Actor, AuditEntry, AuditEvent};
use crate::error::{Error, ErrorKind, Result};
use crate::redact::Redacted;
use crate::scope::Owner;
use crate::{Identity, Namespace, SessionId, UserId};

/// How many bytes end a line: `,"mac":"`, 64 hex digits, `"}`.
pub(super) const TAIL: usize = 74;

/// An audit line as it was read back. Reading does not check its MAC; [`AuditVerifier`](crate::AuditVerifier) does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditLine {
    /// The id of the log it belongs to.
    pub log: String,
    /// The application's share of the log.
    pub namespace: Namespace,
    /// Whose it is, decoded from the line; `None` for the log's own records.
    pub owner: Option<Owner>,
    /// The entry.
    pub entry: AuditEntry,
    /// The name of the key it was MACed with.
    pub key_id: String,
    /// The MAC of the entry before it.
    pub prev: [u8; 32],
    /// Its own MAC.
    pub mac: [u8; 32],
}

impl AuditLine {
    /// Reads a line, without its newline.
    ///
    /// Members this version does not know are passed over.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] for bytes that are no entry, or one of a version that this code does not read. The
    /// message says which member, and repeats none of the content.
    pub fn parse(line: &str) -> Result<Self> {
        let (_, mac) = split_mac(line.as_bytes()).ok_or_else(|| unreadable("mac"))?;
        let all = members(line, MAX_DEPTH).ok_or_else(|| unreadable("JSON"))?;
        let fields = Fields(&all);
        if fields.raw("v")? != "1" {
            return Err(unreadable("v"));
        }
        let namespace = fields.parsed("namespace", |text| Namespace::new(text).ok())?;
        let owner = fields.identity()?.map(|identity| Owner::new(namespace.clone(), identity));
        let payload = fields.raw("payload")?;
        if !payload.starts_with('{') {
            return Err(unreadable("payload"));
        }
        let event = AuditEvent {
            at: fields.parsed("at", |text| text.parse().ok())?,
            session: fields.optional("session_id", |text| SessionId::new(text).ok())?,
            run: fields.optional("run_id", |text| text.parse().ok())?,
            actor: fields.parsed("actor", Actor::from_name)?,
            action: fields.parsed("action", Action::from_name)?,
            // It was redacted before it was MACed.
            payload: Redacted::seal(payload.to_owned()),
        };
        Ok(Self {
            log: fields.parsed("log", |text| Some(text.to_owned()))?,
            namespace,
            owner,
            entry: AuditEntry::new(fields.seq()?, event),
            key_id: fields.parsed("key_id", |text| Some(text.to_owned()))?,
            prev: fields.parsed("prev", |text| hex32(text.as_bytes()))?,
            mac,
        })
    }
}

/// Reads a tenant's line: the entry, and the owner decoded from the stored bytes.
///
/// # Errors
///
/// As [`AuditLine::parse`], and [`ErrorKind::NotFound`] for one of the log's own records, which belongs to no tenant.
pub fn parse_line(line: &str) -> Result<(Owner, AuditEntry)> {
    let line = AuditLine::parse(line)?;
    match line.owner {
        Some(owner) => Ok((owner, line.entry)),
        None => Err(Error::new(ErrorKind::NotFound, "the audit entry belongs to no tenant")),
    }
}

/// The members of a line, by name.
pub(super) struct Fields<'l, 't>(pub(super) &'l [Member<'t>]);

impl<'t> Fields<'_, 't> {
    pub(super) fn raw(&self, name: &'static str) -> Result<&'t str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, raw)| *raw).ok_or_else(|| unreadable(name))
    }

    pub(super) fn parsed<T>(&self, name: &'static str, read: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        string(self.raw(name)?).and_then(|text| read(&text)).ok_or_else(|| unreadable(name))
    }

    fn optional<T>(&self, name: &'static str, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>> {
        if self.raw(name)? == "null" { Ok(None) } else { self.parsed(name, read).map(Some) }
    }

    pub(super) fn seq(&self) -> Result<u64> {
        match self.raw("seq")?.parse() {
            Ok(seq) if seq > 0 => Ok(seq),
            _ => Err(unreadable("seq")),
        }
    }

    /// The user, the anonymous bucket, or nobody: a null user is anonymous only where the line says so.
    pub(super) fn identity(&self) -> Result<Option<Identity>> {
        let anonymous = match self.0.iter().find(|(name, _)| name == "anonymous") {
            None => false,
            Some((_, "true")) => true,
            Some(_) => return Err(unreadable("anonymous")),
        };
        match (self.optional("user_id", |text| UserId::new(text).ok())?, anonymous) {
            (Some(user), false) => Ok(Some(Identity::User(user))),
            (None, true) => Ok(Some(Identity::Anonymous)),
            (None, false) => Ok(None),
            (Some(_), true) => Err(unreadable("anonymous")),
        }
    }
}

/// Splits a line into what its MAC covers (without the closing brace) and the MAC.
pub(super) fn split_mac(line: &[u8]) -> Option<(&[u8], [u8; 32])> {
    let (body, tail) = line.split_at(line.len().checked_sub(TAIL)?);
    let digits = tail.strip_prefix(b",\"mac\":\"")?.strip_suffix(b"\"}")?;
    Some((body, hex32(digits)?))
}

/// 64 lower-case hex digits.
pub(super) fn hex32(digits: &[u8]) -> Option<[u8; 32]> {
    if digits.len() != 64 {
        return None;
    }
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

fn unreadable(member: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "a stored audit entry cannot be read").with_context("member", member)
}
