//! What is left of a user who was evicted: a nameless row of about 40 bytes, kept until its window ends.
//!
//! A row is found by a keyed hash of the partition's encoding; the key is drawn at random and never leaves the process, so
//! a row cannot be led back to a user by anybody who does not ask as that user. Numbers are written as variable-length
//! integers, lossless, so that a row restores the counter exactly as it was, each slice of a rolling window included.

use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashTable;
use loomflow_core::rules::quota::{Periods, Totals};
use loomflow_core::{NanoUsd, RunId, Usage};

/// How many rows all shards together may keep.
#[derive(Debug)]
pub(super) struct Quota {
    kept: AtomicUsize,
    max: usize,
}

impl Quota {
    pub(super) fn new(max: usize) -> Self {
        Self { kept: AtomicUsize::new(0), max }
    }

    /// Takes the right to keep one more row.
    pub(super) fn take(&self) -> bool {
        self.kept
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |kept| (kept < self.max).then_some(kept + 1))
            .is_ok()
    }

    /// Gives the right to keep `rows` rows back.
    pub(super) fn release(&self, rows: usize) {
        self.kept.fetch_sub(rows, Ordering::AcqRel);
    }

    pub(super) fn kept(&self) -> usize {
        self.kept.load(Ordering::Acquire)
    }
}

/// All that a row restores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counter {
    /// The window (or slice) the counter stood in.
    pub(super) window: i64,
    /// Which caps were warned about.
    pub(super) warned: u8,
    /// What was used, by window or slice, oldest first.
    pub(super) parts: Vec<(i64, Totals)>,
    /// Counters of runs that did not end yet, with their warnings.
    pub(super) runs: Vec<(RunId, u8, Totals)>,
}

impl Counter {
    /// Whether forgetting it gives nothing away.
    pub(super) fn is_blank(&self) -> bool {
        self.parts.is_empty() && self.runs.is_empty()
    }
}

/// The rows of one shard.
#[derive(Debug, Default)]
pub(super) struct SpillRows {
    rows: HashTable<Row>,
    /// Up to which window ended rows were dropped.
    purged: i64,
}

/// The two halves of the key are kept apart because a `u128` would align the row to 48 bytes.
#[derive(Debug)]
struct Row {
    key: [u64; 2],
    body: Packed,
}

impl SpillRows {
    /// Keeps a row. The caller holds the right to.
    pub(super) fn insert(&mut self, key: u128, counter: &Counter) {
        let row = Row { key: halves(key), body: Packed::new(&encode(counter)) };
        self.rows.insert_unique(row.key[0], row, |row| row.key[0]);
    }

    pub(super) fn get(&self, key: u128) -> Option<Counter> {
        let key = halves(key);
        self.rows.find(key[0], |row| row.key == key).map(|row| decode(row.body.bytes()))
    }

    pub(super) fn take(&mut self, key: u128) -> Option<Counter> {
        let key = halves(key);
        let (row, _) = self.rows.find_entry(key[0], |row| row.key == key).ok()?.remove();
        Some(decode(row.body.bytes()))
    }

    /// Drops the rows whose windows have ended, once per window, and says how many went. A row with counters of runs
    /// stays: runs have no window.
    pub(super) fn purge(&mut self, periods: &Periods, now: i64) -> usize {
        if now <= self.purged {
            return 0;
        }
        self.purged = now;
        let before = self.rows.len();
        self.rows.retain(|row| {
            let (last, has_runs) = head(row.body.bytes());
            has_runs || !periods.ended(last, now)
        });
        if self.rows.len() < before / 4 {
            self.rows.shrink_to_fit(|row| row.key[0]);
        }
        before - self.rows.len()
    }
}

fn halves(key: u128) -> [u64; 2] {
    [key as u64, (key >> 64) as u64]
}

/// Up to 22 bytes in place, more on the heap.
#[derive(Debug)]
enum Packed {
    Here { len: u8, bytes: [u8; 22] },
    Heap(Box<[u8]>),
}

impl Packed {
    fn new(data: &[u8]) -> Self {
        let mut bytes = [0; 22];
        match bytes.get_mut(..data.len()) {
            Some(place) => {
                place.copy_from_slice(data);
                Self::Here { len: data.len() as u8, bytes }
            }
            None => Self::Heap(data.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Here { len, bytes } => &bytes[..usize::from(*len)],
            Self::Heap(bytes) => bytes,
        }
    }
}

/// There are runs.
const RUNS: u8 = 0x80;
/// There is one part, and it is of the window itself: nearly every row of a window that does not roll.
const PLAIN: u8 = 0x40;

/// Layout: newest part's window, flags (warnings, [`RUNS`], [`PLAIN`]), unless plain: window after that part, number of
/// parts; parts (distance back from the newest unless plain, numbers), number of runs, runs.
fn encode(counter: &Counter) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    let last = counter.parts.last().map_or(counter.window, |(at, _)| *at);
    put(&mut out, zigzag(last));
    let runs = if counter.runs.is_empty() { 0 } else { RUNS };
    if let [(at, used)] = &counter.parts[..]
        && *at == counter.window
    {
        out.push(counter.warned | runs | PLAIN);
        put_totals(&mut out, used);
    } else {
        out.push(counter.warned | runs);
        put(&mut out, zigzag(counter.window.wrapping_sub(last)));
        put(&mut out, counter.parts.len() as u64);
        for (at, used) in &counter.parts {
            put(&mut out, zigzag(last.wrapping_sub(*at)));
            put_totals(&mut out, used);
        }
    }
    if !counter.runs.is_empty() {
        put(&mut out, counter.runs.len() as u64);
        for (run, warned, used) in &counter.runs {
            out.extend_from_slice(&run.as_u128().to_le_bytes());
            out.push(*warned);
            put_totals(&mut out, used);
        }
    }
    out
}

fn decode(mut data: &[u8]) -> Counter {
    let from = &mut data;
    let last = unzigzag(get(from));
    let flags = byte(from);
    let (window, parts) = if flags & PLAIN == 0 {
        let window = last.wrapping_add(unzigzag(get(from)));
        let parts = (0..get(from)).map(|_| {
            let at = last.wrapping_sub(unzigzag(get(from)));
            (at, get_totals(from))
        });
        (window, parts.collect())
    } else {
        (last, vec![(last, get_totals(from))])
    };
    let runs = if flags & RUNS == 0 { 0 } else { get(from) };
    let runs = (0..runs)
        .map(|_| {
            let mut id = [0; 16];
            id.fill_with(|| byte(from));
            (RunId::from_u128(u128::from_le_bytes(id)), byte(from), get_totals(from))
        })
        .collect();
    Counter { window, warned: flags & !(RUNS | PLAIN), parts, runs }
}

/// The newest window with usage, and whether there are runs.
fn head(mut data: &[u8]) -> (i64, bool) {
    let last = unzigzag(get(&mut data));
    (last, byte(&mut data) & RUNS != 0)
}

fn put_totals(out: &mut Vec<u8>, t: &Totals) {
    let u = &t.usage;
    let numbers = [
        u.input_tokens,
        u.output_tokens,
        u.cost_usd.0,
        t.wall,
        u.cached_input_tokens,
        u.cache_write_tokens,
        t.estimated,
    ];
    // One bit says which numbers are not zero, since most users leave several untouched.
    out.push((0..7).filter(|i| numbers[*i] != 0).fold(0, |bits, i| bits | 1 << i));
    for n in numbers.into_iter().filter(|n| *n != 0) {
        put(out, n);
    }
}

fn get_totals(from: &mut &[u8]) -> Totals {
    let bits = byte(from);
    let mut next = |i: u8| if bits & (1 << i) == 0 { 0 } else { get(from) };
    let usage = Usage::new(next(0), next(1)).with_cost(NanoUsd(next(2)));
    let wall = next(3);
    let usage = usage.with_cache(next(4), next(5));
    Totals::new(usage, wall, next(6))
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn unzigzag(n: u64) -> i64 {
    ((n >> 1) as i64) ^ -((n & 1) as i64)
}

fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn get(from: &mut &[u8]) -> u64 {
    let (mut n, mut shift) = (0, 0);
    loop {
        let b = byte(from);
        n |= u64::from(b & 0x7f) << shift;
        shift += 7;
        if b < 0x80 {
            return n;
        }
    }
}

fn byte(from: &mut &[u8]) -> u8 {
    let (first, rest) = from.split_first().expect("a row is read by the code that wrote it");
    *from = rest;
    *first
}

#[cfg(test)]
mod tests {
    use super::*;
    use loomflow_core::Window;
    use proptest::prelude::*;

    fn totals() -> impl Strategy<Value = Totals> {
        let number = prop_oneof![Just(0_u64), 0_u64..1_000_000, any::<u64>()];
        prop::array::uniform7(number).prop_map(|[a, b, c, d, e, f, g]| {
            Totals::new(Usage::new(a, b).with_cost(NanoUsd(c)).with_cache(d, e), f, g)
        })
    }

    proptest! {
        #[test]
        fn a_row_restores_what_it_was_made_of(
            window in any::<i64>(),
            warned in 0_u8..32,
            parts in prop::collection::vec((any::<i64>(), totals()), 0..4),
            runs in prop::collection::vec((any::<u128>().prop_map(RunId::from_u128), 0_u8..32, totals()), 0..3),
        ) {
            let counter = Counter { window, warned, parts, runs };
            let mut rows = SpillRows::default();
            rows.insert(7, &counter);
            prop_assert_eq!(rows.get(7), Some(counter.clone()));
            prop_assert_eq!(rows.take(7), Some(counter));
            prop_assert_eq!(rows.take(7), None);
        }
    }

    #[test]
    fn a_usual_row_is_about_40_bytes_and_has_nothing_on_the_heap() {
        assert_eq!(size_of::<Row>(), 40);
        let used =
            Totals::new(Usage::new(1_500_000, 200_000).with_cost(NanoUsd(9_000_000_000)), 3_600_000_000, 0);
        let counter = Counter { window: 20_777, warned: 31, parts: vec![(20_777, used)], runs: Vec::new() };
        assert!(matches!(Packed::new(&encode(&counter)), Packed::Here { .. }));
    }

    #[test]
    fn rows_go_when_their_window_has_ended_and_not_before() {
        let periods = Periods::new(Window::Day);
        let used = Totals::new(Usage::new(1, 1), 0, 0);
        let mut rows = SpillRows::default();
        for day in 1..=3 {
            rows.insert(
                day as u128,
                &Counter { window: day, parts: vec![(day, used)], ..Counter::default() },
            );
        }
        let run = vec![(RunId::from_u128(1), 0, used)];
        rows.insert(9, &Counter { window: 1, parts: vec![(1, used)], runs: run, ..Counter::default() });
        assert_eq!(rows.purge(&periods, 2), 1);
        assert_eq!(rows.purge(&periods, 3), 1);
        assert!(rows.get(3).is_some() && rows.get(9).is_some());
    }
}
