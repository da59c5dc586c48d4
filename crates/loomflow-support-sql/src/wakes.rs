//! Waiting for a change of a row: of what this process changes one hears at once, and what another process changes is found
//! by looking. Between two looks nothing is held.

use std::fmt;
use std::time::Duration;

use loomflow_core::Result;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// How many bells there are; rows that share one wake each other's waiters, who look and go on waiting.
const BELLS: u128 = 64;
/// How long it is until the first look, and how long it becomes; each with a jitter of a quarter.
const FIRST: Duration = Duration::from_millis(250);
const LAST: Duration = Duration::from_secs(2);
/// A waiter returns after this, changed or not.
const LONGEST: Duration = Duration::from_secs(30);

/// Wakes those who wait for a row, by its number.
pub struct Wakes(Vec<Notify>);

impl Wakes {
    /// Bells that nobody waits for.
    #[must_use]
    pub fn new() -> Self {
        Self((0..BELLS).map(|_| Notify::new()).collect())
    }

    fn bell(&self, id: u128) -> &Notify {
        &self.0[usize::try_from(id % BELLS).expect("there are 64")]
    }

    /// Says that a row changed.
    pub fn ring(&self, id: u128) {
        self.bell(id).notify_waiters();
    }

    /// Says that any row may have changed.
    pub fn ring_all(&self) {
        self.0.iter().for_each(Notify::notify_waiters);
    }

    /// Returns when `has_changed` says so, which is asked at once, after each ring, and then after 250 ms and ever less
    /// often up to every 2 s; or after 30 s, changed or not.
    ///
    /// # Errors
    ///
    /// Whatever `has_changed` fails with.
    pub async fn changed<F, Fut>(&self, id: u128, mut has_changed: F) -> Result<()>
    where
        F: FnMut() -> Fut + Send,
        Fut: Future<Output = Result<bool>> + Send,
    {
        let until = Instant::now() + LONGEST;
        let mut pause = FIRST;
        loop {
            let mut rung = std::pin::pin!(self.bell(id).notified());
            // Registered before the look, so that a ring between the look and the wait is not missed.
            rung.as_mut().enable();
            if has_changed().await? || Instant::now() >= until {
                return Ok(());
            }
            let jittered = pause.mul_f64(rand::random_range(0.75..1.25));
            let _either = timeout(jittered, rung).await;
            pause = (pause * 3 / 2).min(LAST);
        }
    }
}

impl Default for Wakes {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Wakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wakes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn it_looks_at_once_then_ever_less_often_and_not_for_ever() {
        let (wakes, looks) = (Wakes::new(), AtomicU32::new(0));
        let began = Instant::now();
        let never = || {
            looks.fetch_add(1, Ordering::SeqCst);
            async { Ok(false) }
        };
        wakes.changed(7, never).await.unwrap();
        assert!(began.elapsed() >= LONGEST && began.elapsed() < LONGEST + LAST * 2);
        let looks = looks.load(Ordering::SeqCst);
        assert!((15..35).contains(&looks), "{looks} looks in half a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn a_ring_ends_the_pause_of_its_row_alone() {
        let wakes = std::sync::Arc::new(Wakes::new());
        let looks = std::sync::Arc::new(AtomicU32::new(0));
        let (bells, seen) = (wakes.clone(), looks.clone());
        let waiter = tokio::spawn(async move {
            let third = || {
                let look = seen.fetch_add(1, Ordering::SeqCst);
                async move { Ok(look == 2) }
            };
            bells.changed(7, third).await
        });
        let began = Instant::now();
        for ring in [8, 7, 7] {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            wakes.ring(ring);
        }
        waiter.await.unwrap().unwrap();
        assert!(began.elapsed() < FIRST / 2, "it was rung for, not waited for");
        assert_eq!(looks.load(Ordering::SeqCst), 3);
    }
}
