//! The verifier of a chained audit log, without I/O: it is fed lines and says what is wrong with them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::audit::chain::{AuditKey, hex};
use crate::audit::line::{Fields, hex32, split_mac};
use crate::audit::scan::{MAX_DEPTH, Member, members};
use crate::audit::{AuditProblem, AuditVerification};

/// The most problems that are kept: a log under another key has one a line.
const MAX_PROBLEMS: usize = 10_000;

/// Checks a log line by line, in constant memory.
///
/// It detects `bad_mac`, `broken_chain`, `gap`, `duplicate`, `torn`, `unknown_key`, `foreign` and `malformed`. That
/// entries are missing at the end (`truncated`) shows only against an anchor, which is its keeper's to compare.
#[derive(Debug)]
pub struct AuditVerifier {
    keys: HashMap<String, Arc<AuditKey>>,
    log: Option<String>,
    /// The place of the next entry.
    next: u64,
    /// The MACs the next entry may name: the last line's as stored and, where that line is bad already, as computed, so
    /// that one bad line is not reported again as a broken chain behind it.
    prev: Prev,
    /// Lines that could not be read since the last one that could.
    unread: u64,
    entries: u64,
    first: u64,
    last: u64,
    head: [u8; 32],
    problems: Vec<AuditProblem>,
    /// Where the problems of the last line begin.
    fresh: usize,
}

#[derive(Clone, Copy, Debug)]
struct Prev {
    stored: [u8; 32],
    computed: Option<[u8; 32]>,
}

impl Prev {
    fn one(mac: [u8; 32]) -> Self {
        Self { stored: mac, computed: None }
    }

    fn allows(&self, mac: &[u8; 32]) -> bool {
        self.stored == *mac || self.computed.as_ref() == Some(mac)
    }
}

impl AuditVerifier {
    /// A verifier that knows `keys`, for a log that begins at its first entry.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = Arc<AuditKey>>) -> Self {
        Self {
            keys: keys.into_iter().map(|key| (key.id().to_owned(), key)).collect(),
            log: None,
            next: 1,
            prev: Prev::one([0; 32]),
            unread: 0,
            entries: 0,
            first: 0,
            last: 0,
            head: [0; 32],
            problems: Vec::new(),
            fresh: 0,
        }
    }

    /// Says which log it must be. Otherwise the first line that can be read says so.
    #[must_use]
    pub fn with_log(mut self, id: impl Into<String>) -> Self {
        self.log = Some(id.into());
        self
    }

    /// Begins after the entry `seq` with that MAC, because everything up to it was removed on purpose.
    #[must_use]
    pub fn starting_after(mut self, seq: u64, mac: [u8; 32]) -> Self {
        self.next = seq.saturating_add(1);
        self.prev = Prev::one(mac);
        self.head = mac;
        self
    }

    /// Reads the next line, without its newline. Returns what is wrong with it.
    pub fn push(&mut self, line: &[u8]) -> &[AuditProblem] {
        self.fresh = self.problems.len();
        if self.check(line).is_none() {
            self.problem(self.next.saturating_add(self.unread), "malformed");
            self.unread = self.unread.saturating_add(1);
        }
        &self.problems[self.fresh..]
    }

    /// Reads what stands after the last newline: a line whose writing was cut off. Nothing is no problem.
    pub fn push_torn(&mut self, rest: &[u8]) -> &[AuditProblem] {
        self.fresh = self.problems.len();
        if !rest.is_empty() {
            self.problem(self.next.saturating_add(self.unread), "torn");
        }
        &self.problems[self.fresh..]
    }

    /// The place of the last entry that was read; 0 before the first.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.last
    }

    /// The MAC of the last entry that was read.
    #[must_use]
    pub fn head(&self) -> [u8; 32] {
        self.head
    }

    /// The outcome.
    #[must_use]
    pub fn finish(self) -> AuditVerification {
        AuditVerification::new(self.entries, self.first, self.last, hex(&self.head), self.problems)
    }

    /// `None` when the line cannot be read at all.
    fn check(&mut self, line: &[u8]) -> Option<()> {
        let (body, mac) = split_mac(line)?;
        let all = members(std::str::from_utf8(line).ok()?, MAX_DEPTH)?;
        let fields = Fields(&all);
        let seq = fields.seq().ok()?;
        let prev = fields.parsed("prev", |text| hex32(text.as_bytes())).ok()?;
        let key_id = fields.parsed("key_id", |text| Some(text.to_owned())).ok()?;
        let log = fields.parsed("log", |text| Some(text.to_owned())).ok()?;
        self.entries += 1;
        match self.keys.get(&key_id) {
            Some(key) if key.matches(line) => {
                if !is_entry(&all) {
                    self.entries -= 1;
                    return None;
                }
                // Only an authentic line may say which log this is.
                self.log.get_or_insert_with(|| log.clone());
                self.chain(seq, &log, prev, Prev::one(mac));
            }
            Some(key) => {
                let computed = Some(key.mac(body));
                self.unproven(seq, "bad_mac", &log, prev, Prev { stored: mac, computed });
            }
            None => self.unproven(seq, "unknown_key", &log, prev, Prev::one(mac)),
        }
        Some(())
    }

    /// Notes a line that nobody vouches for. The place it claims is believed only where it is the expected one;
    /// otherwise one changed digit would make every line behind it look wrong.
    fn unproven(&mut self, seq: u64, kind: &'static str, log: &str, prev: [u8; 32], this: Prev) {
        if seq == self.next {
            self.problem(seq, kind);
            self.chain(seq, log, prev, this);
        } else {
            self.problem(self.next.saturating_add(self.unread), kind);
            self.unread = self.unread.saturating_add(1);
        }
    }

    /// Compares a line's place, log and predecessor with what must come next.
    fn chain(&mut self, seq: u64, log: &str, prev: [u8; 32], this: Prev) {
        if self.log.as_deref().is_some_and(|own| own != log) {
            return self.problem(seq, "foreign");
        }
        if seq < self.next {
            return self.problem(seq, "duplicate");
        }
        // An unreadable line may stand where an entry was, or between two: behind it, either place is right.
        if seq > self.next.saturating_add(self.unread) {
            self.problem(seq, "gap");
        } else if seq == self.next && !self.prev.allows(&prev) {
            self.problem(seq, "broken_chain");
        }
        if self.first == 0 {
            self.first = seq;
        }
        self.unread = 0;
        self.last = seq;
        self.next = seq.saturating_add(1);
        self.prev = this;
        self.head = this.stored;
    }

    fn problem(&mut self, seq: u64, kind: &'static str) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(AuditProblem::new(seq, kind));
        }
    }
}

/// Whether an authentic line has every member an entry has. Names of actions this version does not know are fine.
fn is_entry(all: &[Member<'_>]) -> bool {
    let fields = Fields(all);
    let text = |name| fields.parsed(name, |_| Some(())).is_ok();
    fields.raw("v").is_ok_and(|v| v == "1")
        && fields.parsed("at", |at| at.parse::<crate::Timestamp>().ok()).is_ok()
        && text("namespace")
        && fields.identity().is_ok()
        && ["session_id", "run_id"]
            .into_iter()
            .all(|name| fields.raw(name).is_ok_and(|raw| raw == "null") || text(name))
        && text("actor")
        && text("action")
        && fields.raw("payload").is_ok_and(|raw| raw.starts_with('{'))
}
