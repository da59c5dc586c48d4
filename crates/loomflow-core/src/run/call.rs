//! One tool call while it is at work: what it may delegate through, what its children used, and in which order everything
//! that belongs to it ends.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;

use crate::closer::Handoff;
use crate::error::Result;
use crate::run::{RunClock, RunState};
use crate::usage::Usage;

/// A tool call at work. The context that its tool is given carries it, so that a run which the tool delegates to is this
/// call's child and no other's.
pub(crate) struct CallFrame {
    pub(crate) id: Arc<str>,
    pub(crate) run: Weak<RunState>,
    pub(crate) clock: Arc<RunClock>,
    latch: Weak<Latch>,
    used: Mutex<Usage>,
    /// Whether the log has the call's intent, and so must have its result.
    intended: AtomicBool,
    delegated: AtomicBool,
    /// Whether the call is over. Every child in flight has a receiver.
    over: watch::Sender<bool>,
}

impl CallFrame {
    pub(crate) fn new(run: &Arc<RunState>, id: Arc<str>, clock: Arc<RunClock>, latch: &Arc<Latch>) -> Self {
        Self {
            id,
            run: Arc::downgrade(run),
            clock,
            latch: Arc::downgrade(latch),
            used: Mutex::default(),
            intended: AtomicBool::new(false),
            delegated: AtomicBool::new(false),
            over: watch::Sender::new(false),
        }
    }

    pub(crate) fn intended(&self) {
        self.intended.store(true, Ordering::Release);
    }

    pub(crate) fn was_intended(&self) -> bool {
        self.intended.load(Ordering::Acquire)
    }

    /// Makes room for a child; `None` when the call is over already.
    pub(crate) fn enter(&self) -> Option<(Recall, Arc<Latch>)> {
        let recall = Recall(self.over.subscribe());
        self.delegated.store(true, Ordering::Release);
        let latch = self.latch.upgrade().filter(|_| !*self.over.borrow())?;
        Some((recall, latch))
    }

    /// Whether the call ever had a child.
    pub(crate) fn delegated(&self) -> bool {
        self.delegated.load(Ordering::Acquire)
    }

    /// Tells children that a tool left running behind its back that the call is over.
    pub(crate) fn recall(&self) {
        self.over.send_replace(true);
    }

    /// Waits until no child is left.
    pub(crate) async fn deserted(&self) {
        self.over.closed().await;
    }

    pub(crate) fn add(&self, usage: Usage) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) += usage;
    }

    /// What the call's children used.
    pub(crate) fn used(&self) -> Usage {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CallFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallFrame({})", self.id)
    }
}

/// Ends when the call that a child belongs to is over. Held as long as the child is in flight.
pub(crate) struct Recall(watch::Receiver<bool>);

impl Recall {
    pub(crate) async fn called(&mut self) {
        // The sender cannot be gone while a child holds its call; were it, the call would be over, too.
        let _over = self.0.wait_for(|over| *over).await;
    }
}

/// Holds back the record that ends a run or a call until everything within has handed over its own: whoever is last to let
/// go hands the record over. Without anything left within, that is at once.
pub(crate) struct Latch {
    // In this order: a field that is declared first is dropped first.
    last: Mutex<Option<Handoff<Result<()>>>>,
    outer: Option<Arc<Latch>>,
}

impl Latch {
    pub(crate) fn new(outer: Option<Arc<Latch>>) -> Arc<Self> {
        Arc::new(Self { last: Mutex::new(None), outer })
    }

    /// Leaves `record` behind for when nobody holds the latch any more.
    pub(crate) fn leave(&self, record: Handoff<Result<()>>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
    }
}

impl fmt::Debug for Latch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Latch(within another: {})", self.outer.is_some())
    }
}
