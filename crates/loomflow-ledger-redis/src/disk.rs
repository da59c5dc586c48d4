//! Waiting until the server has written to its disk, once for all who wait at the same time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use loomflow_core::resilience::Repeat;
use loomflow_core::{Error, ErrorKind, Result};
use loomflow_support_redis::{Link, LinkOptions};
use tokio::sync::Semaphore;

/// A connection of its own: whoever waits on a connection stops everything behind it.
#[derive(Debug)]
pub(crate) struct Disk {
    link: Link,
    /// A key whose only use is to be written: a connection waits for its own writes alone, and all that is before them.
    key: String,
    limit: Duration,
    /// How many have asked, and up to which of them the disk has it.
    asked: AtomicU64,
    done: AtomicU64,
    turn: Semaphore,
}

impl Disk {
    pub(crate) async fn connect(options: &LinkOptions, key: String) -> Result<Self> {
        let disk = Self {
            link: Link::connect(options).await?,
            key,
            limit: options.operation_timeout,
            asked: AtomicU64::new(0),
            done: AtomicU64::new(0),
            turn: Semaphore::new(1),
        };
        match disk.wait().await {
            Err(e) if !e.is_retryable() => Err(Error::new(
                ErrorKind::Config,
                "`wait_for_disk` needs Redis 7.2 or newer with `appendonly yes`, and this one refuses WAITAOF",
            )
            .with_operation("connect")
            .with_source(e)),
            answer => answer.map(|()| disk),
        }
    }

    /// Returns when what was answered before this call is on the server's disk.
    pub(crate) async fn wait(&self) -> Result<()> {
        let mine = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let closed = |_| Error::new(ErrorKind::Internal, "nobody closes this semaphore");
        let _turn = self.turn.acquire().await.map_err(closed)?;
        // One that began after this was asked covers it.
        if self.done.load(Ordering::Acquire) >= mine {
            return Ok(());
        }
        let upto = self.asked.load(Ordering::Acquire);
        let mut both = redis::pipe();
        both.set(&self.key, 1).ignore();
        let millis = u64::try_from(self.limit.as_millis() / 2).unwrap_or(u64::MAX).max(1);
        both.cmd("WAITAOF").arg(1).arg(0).arg(millis);
        let ((written, _),): ((u64, u64),) = self.link.pipeline("wait_for_disk", Repeat::Safe, &both).await?;
        if written == 0 {
            let message = "the server did not write to its disk in time: what was asked for was done, and may be lost in a crash";
            return Err(Error::new(ErrorKind::Timeout, message).with_operation("wait_for_disk"));
        }
        self.done.fetch_max(upto, Ordering::AcqRel);
        Ok(())
    }
}
