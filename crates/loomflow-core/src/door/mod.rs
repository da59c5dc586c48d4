//! The two doors: the single path to models, and the single path to tools.

mod asking;
mod embed;
mod line;
mod model;
mod permit;
mod rate;
mod remembered;
mod retry;
mod tool;
mod waiting;

pub(crate) use embed::embed;
pub(crate) use model::{Answer, call_model, refused, set_aside};
pub(crate) use permit::STEPS as STEPS_OF_A_CALL;
pub(crate) use rate::{RateGate, admit_run};
pub use retry::RetryPolicy;
pub(crate) use tool::{Executed, ToolSet, run_tool};

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::error::{Error, ErrorKind, Result};

/// Runs somebody else's code: a panic and taking too long are errors like any other.
pub(crate) async fn guarded<T>(
    what: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T>> + Send,
) -> Result<T> {
    match tokio::time::timeout(limit, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => {
            Err(Error::new(ErrorKind::Internal, format!("{what} panicked: {}", panic_text(&*panic))))
        }
        Err(_) => Err(Error::new(ErrorKind::Timeout, format!("{what} took longer than {limit:?}"))),
    }
}

/// The words a panic was raised with, if it was raised with words.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}
