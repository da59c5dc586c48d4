//! The hook that puts a foreign row where a tenant's query finds it, so that the tripwire can be seen to work.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use loomflow_core::{Owner, Result, Scope};

/// An order to write one foreign row, by raw means: a row that is filed under the partition key of `scope` and says
/// that it belongs to `foreign`.
#[derive(Debug)]
#[non_exhaustive]
pub struct Plant<R> {
    /// The tenant under whose key the row is filed, so that the tenant's own queries find it.
    pub scope: Scope,
    /// Whose row it says it is.
    pub foreign: Owner,
    /// What the row holds.
    pub record: R,
}

/// What a backend author writes to plant a foreign row.
pub type PlantFn<R> = Arc<dyn Fn(Plant<R>) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// A hook that may be missing; where it is, the cases that need it fail and say how to add it.
#[derive(Clone)]
pub(crate) struct PlantHook<R>(Option<PlantFn<R>>);

impl<R> PlantHook<R> {
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    pub(crate) fn new<F, Fut>(plant: F) -> Self
    where
        F: Fn(Plant<R>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        Self(Some(Arc::new(move |order| Box::pin(plant(order)))))
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Plants `record`, or fails the case with instructions.
    pub(crate) async fn plant(&self, scope: Scope, foreign: Owner, record: R) {
        let hook = self.0.clone().unwrap_or_else(|| {
            panic!(
                "the harness has no plant hook. Isolation cannot be shown without it: add `.with_plant(..)` to the \
                 harness, with a function that writes, by raw means (SQL, a Redis command, a doc(hidden) method), a row \
                 under the partition key of `scope` whose stored owner is `foreign`"
            )
        });
        hook(Plant { scope, foreign, record })
            .await
            .unwrap_or_else(|e| panic!("the plant hook could not write the foreign row: {e}"));
    }
}

impl<R> fmt::Debug for PlantHook<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "PlantHook(set)" } else { "PlantHook(none)" })
    }
}
