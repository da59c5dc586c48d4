//! Timing for this crate's measurements: the quickest of many short batches, which a busy machine disturbs least.

use std::time::Instant;

/// Nanoseconds of one call of `work`.
pub(crate) fn nanos(mut work: impl FnMut()) -> u128 {
    let batch = |work: &mut dyn FnMut()| {
        let started = Instant::now();
        (0..500).for_each(|_| work());
        started.elapsed().as_nanos() / 500
    };
    (0..400).map(|_| batch(&mut work)).min().unwrap_or_default()
}

/// The outcome of a future that is ready when it is first polled.
pub(crate) fn at_once<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("the future waited"),
    }
}
