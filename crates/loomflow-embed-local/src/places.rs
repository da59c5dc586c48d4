//! Places for what computes: tokio's threads for blocking work, and only so many of them.

use std::sync::Arc;

use loomflow_core::{Error, ErrorKind, Result};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// So many computations at a time; the others wait in the order in which they came.
pub(crate) struct Places(Arc<Semaphore>);

impl Places {
    /// `places` of them; at least one.
    pub(crate) fn new(places: usize) -> Self {
        Self(Arc::new(Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// Waits for a place and computes there. When the future is dropped, nothing begins any more, and what had begun keeps its
    /// place until it ends: who gives up and asks again does not get a second one.
    ///
    /// # Errors
    ///
    /// What `work` says; [`ErrorKind::Internal`] when it panics.
    pub(crate) async fn compute<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        let place = self.0.clone().acquire_owned().await;
        let place = place.map_err(|_| Error::new(ErrorKind::Internal, "the semaphore was closed"))?;
        let computed = spawn_blocking(move || {
            let _place = place;
            work()
        });
        computed.await.map_err(|_| Error::new(ErrorKind::Internal, "the model panicked on a batch"))?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    /// Only so that a broken build fails and does not hang.
    const LONG: Duration = Duration::from_secs(60);

    // One worker: computing on it would leave nobody to say "go on".
    #[tokio::test]
    async fn what_was_dropped_keeps_its_place_until_it_ends() {
        let places = Arc::new(Places::new(1));
        let (begun, began) = oneshot::channel();
        let (go_on, told) = mpsc::channel::<()>();
        let own = places.clone();
        let caller = tokio::spawn(async move {
            let work = move || {
                begun.send(()).unwrap();
                told.recv_timeout(LONG).unwrap();
                Ok(())
            };
            own.compute(work).await
        });
        began.await.unwrap();
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        assert_eq!(places.0.available_permits(), 0);
        go_on.send(()).unwrap();
        assert_eq!(places.compute(|| Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_more_compute_than_there_are_places() {
        let places = Arc::new(Places::new(2));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let callers: Vec<_> = (0..200)
            .map(|_| {
                let (places, now, most) = (places.clone(), now.clone(), most.clone());
                tokio::spawn(async move {
                    let work = move || {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                        Ok(())
                    };
                    places.compute(work).await
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap().unwrap();
        }
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_leaves_its_place() {
        let places = Places::new(0);
        let error = places.compute::<(), _>(|| panic!("on purpose")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert_eq!(places.compute(|| Ok(7)).await.unwrap(), 7);
    }
}
