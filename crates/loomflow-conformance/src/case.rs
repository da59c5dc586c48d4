//! What a case is, how one is run, and the macro that makes a suite's list and its `#[test]`s from one source.

use std::any::Any;
use std::fmt;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt as _;

/// The longest a case may take: a backend that hangs fails, it does not stop the suite.
const CASE_LIMIT: Duration = Duration::from_secs(120);

/// How a case ended, if it did not panic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The backend does what its trait promises.
    Passed,
    /// The backend declares that it does not offer this, and says so here. Never accepted from an isolation case.
    Unsupported(String),
}

impl Outcome {
    /// The backend does not offer `what`.
    #[must_use]
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported(what.into())
    }
}

/// How a case ended, its panics included: one field of a conformance matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The backend does what its trait promises.
    Passed,
    /// The backend declares that it does not offer this.
    Unsupported(String),
    /// The backend broke its promise; this says which.
    Failed(String),
}

impl Verdict {
    /// The word a matrix shows: `pass`, `unsupported` or `fail`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Unsupported(_) => "unsupported",
            Self::Failed(_) => "fail",
        }
    }
}

/// A case in flight.
pub type CaseFuture<'h> = Pin<Box<dyn Future<Output = Outcome> + Send + 'h>>;

/// One promise of a trait, and the code that checks it against a harness `H`.
pub struct Case<H: 'static> {
    suite: &'static str,
    name: &'static str,
    isolation: bool,
    run: fn(&H) -> CaseFuture<'_>,
}

impl<H: Sync> Case<H> {
    #[doc(hidden)]
    #[must_use]
    pub const fn new(
        suite: &'static str,
        name: &'static str,
        isolation: bool,
        run: fn(&H) -> CaseFuture<'_>,
    ) -> Self {
        Self { suite, name, isolation, run }
    }

    /// The suite: `memory`, `ledger`, `audit`, `approvals`, `runtime`, `tool_cache` or `models`.
    #[must_use]
    pub fn suite(&self) -> &'static str {
        self.suite
    }

    /// The case's name, which is also the name of its `#[test]`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it is about one tenant and another. No capability switches such a case off.
    #[must_use]
    pub fn is_isolation(&self) -> bool {
        self.isolation
    }

    /// Runs the case in the present tokio runtime (which needs its timers).
    ///
    /// # Panics
    ///
    /// When the backend breaks the promise, when an isolation case calls itself unsupported, or when the case takes
    /// longer than two minutes.
    pub async fn check(&self, harness: &H) -> Outcome {
        let outcome = tokio::time::timeout(CASE_LIMIT, (self.run)(harness)).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("{self:?} did not end within {CASE_LIMIT:?}"));
        if let (true, Outcome::Unsupported(why)) = (self.isolation, &outcome) {
            panic!("{self:?} is an isolation case and cannot be switched off, but was: {why}");
        }
        outcome
    }

    /// Runs the case and turns a panic into a verdict: for a matrix of many backends.
    pub async fn verdict(&self, harness: &H) -> Verdict {
        match AssertUnwindSafe(self.check(harness)).catch_unwind().await {
            Ok(Outcome::Passed) => Verdict::Passed,
            Ok(Outcome::Unsupported(why)) => Verdict::Unsupported(why),
            Err(panic) => Verdict::Failed(panic_text(&*panic)),
        }
    }
}

impl<H> fmt::Debug for Case<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.suite, self.name)
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without text".into())
}

/// Why a backend cannot be tested here and now, such as a server that nobody configured.
///
/// A suite whose factory returns this is skipped, loudly, on standard error. Where the server must be there, panic in
/// the factory instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(String);

impl Unavailable {
    /// The backend cannot be tested because of `why`; say what would make it possible.
    #[must_use]
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a factory may return: a harness, or a harness unless the backend is [`Unavailable`].
pub trait IntoHarness<H> {
    /// The harness, or why there is none.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when the backend cannot be tested here.
    fn into_harness(self) -> Result<H, Unavailable>;
}

impl<H> IntoHarness<H> for H {
    fn into_harness(self) -> Result<H, Unavailable> {
        Ok(self)
    }
}

impl<H> IntoHarness<H> for Result<H, Unavailable> {
    fn into_harness(self) -> Self {
        self
    }
}

/// Runs the case `name` in a runtime of its own, against the harness that `provide` makes. What a generated test calls.
#[doc(hidden)]
#[allow(clippy::future_not_send, reason = "blocked on where it is made: a factory need not be Send")]
pub fn run_test<H: Sync>(
    cases: &'static [Case<H>],
    name: &str,
    provide: impl Future<Output = Result<H, Unavailable>>,
) {
    let case = cases.iter().find(|case| case.name == name).expect("the list and the tests have one source");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a test can start a runtime");
    let outcome = runtime.block_on(async {
        match provide.await {
            Ok(harness) => case.check(&harness).await,
            Err(why) => Outcome::unsupported(format!("the backend is not available: {why}")),
        }
    });
    if let Outcome::Unsupported(why) = outcome {
        // Written to the handle, since the test harness would swallow what a passing test prints.
        let _unwritable = writeln!(std::io::stderr(), "UNSUPPORTED {case:?}: {why}");
    }
}

/// Makes, from one list, a suite's `cases()` and the exported macro that yields one `#[test]` per case.
macro_rules! suite {
    ($d:tt $suite:ident, $tests:ident, $runner:ident, $(#[$doc:meta])*
     behaviour: [$($module:ident :: $name:ident,)*],
     isolation: [$($imodule:ident :: $iname:ident,)*] $(,)?) => {
        /// Every case of the suite, in the order its tests are declared.
        #[must_use]
        pub fn cases() -> &'static [$crate::Case<Harness>] {
            static CASES: &[$crate::Case<Harness>] = &[
                $($crate::Case::new(stringify!($suite), stringify!($name), false,
                    |h| Box::pin($module::$name(h))),)*
                $($crate::Case::new(stringify!($suite), stringify!($iname), true,
                    |h| Box::pin($imodule::$iname(h))),)*
            ];
            CASES
        }

        $(#[$doc])*
        #[macro_export]
        macro_rules! $suite {
            ($d factory:expr) => {
                #[allow(dead_code)]
                fn $runner(name: &str) {
                    $crate::run_test($crate::$suite::cases(), name, $crate::$suite::provide($d factory));
                }

                mod $tests {
                    #[allow(dead_code)]
                    pub(super) const NAMES: &[&str] = &[$(stringify!($name),)* $(stringify!($iname),)*];

                    $(#[test]
                    fn $name() {
                        super::$runner(stringify!($name));
                    })*
                    $(#[test]
                    fn $iname() {
                        super::$runner(stringify!($iname));
                    })*
                }
            };
        }
    };
}
pub(crate) use suite;
