//! The suite of [`ToolCache`]: it may forget, and it never mixes.

pub mod cases;

use std::fmt;
use std::sync::Arc;

use loomflow_core::{Scope, ToolCache};

use crate::fixture::{Must as _, open_one};
use crate::{IntoHarness, Unavailable};

/// The cache under test.
#[derive(Clone)]
pub struct Harness {
    cache: Arc<dyn ToolCache>,
}

impl Harness {
    /// A harness for `cache`, which may be shared with other cases and hold other values.
    #[must_use]
    pub fn new(cache: Arc<dyn ToolCache>) -> Self {
        Self { cache }
    }

    pub(crate) fn cache(&self) -> &dyn ToolCache {
        &*self.cache
    }

    pub(crate) async fn get(&self, scope: &Scope, key: &str) -> Option<String> {
        let found = self.cache.get(scope, key).await.must("get");
        found.map(|owned| open_one(scope, owned, "get"))
    }

    pub(crate) async fn put(&self, scope: &Scope, key: &str, value: &str) {
        self.cache.put(scope, key, value).await.must("put");
    }
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tool_cache::Harness({:?})", self.cache)
    }
}

#[doc(hidden)]
#[allow(clippy::future_not_send, reason = "a factory need not be Send")]
pub async fn provide<F, Fut, P>(factory: F) -> Result<Harness, Unavailable>
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = P>,
    P: IntoHarness<Harness>,
{
    factory().await.into_harness()
}

crate::case::suite! { $ tool_cache, tool_cache_cases, __loomflow_tool_cache_case,
    /// One `#[test]` per case of the tool cache suite, in a module `tool_cache_cases`. `factory` is an `async fn` that
    /// returns a fresh [`tool_cache::Harness`](crate::tool_cache::Harness), or `Result<Harness, Unavailable>`.
    behaviour: [
        cases::keeps_a_value,
        cases::the_last_value_stands,
    ],
    isolation: [
        cases::hostile_tenants_and_keys_do_not_mix,
        cases::namespaces_are_apart,
        cases::clearing_one_leaves_the_other,
        cases::a_late_write_does_not_come_back_after_clearing,
        cases::clearing_again_takes_what_came_between,
    ],
}
