//! Where a store is, and workers on it.

use std::path::{Path, PathBuf};

use loomflow_tests::own::OwnServer;
use loomflow_tests::services;
use loomflow_tests::worker::Worker;
use tokio::runtime::Runtime;

/// A store's URL, and the file behind it if that is ours.
pub(crate) struct Place {
    url: String,
    dir: Option<PathBuf>,
}

impl Place {
    /// A service that others use, too.
    pub(crate) fn service(name: &str, prefix: &str) -> Self {
        Self { url: format!("{prefix}{}", services::url(name)), dir: None }
    }

    /// A file of its own.
    pub(crate) fn sqlite() -> Self {
        let dir = std::env::temp_dir().join(format!("loomflow-processes-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&dir).unwrap();
        Self { url: format!("sqlite:{}", dir.join("memory.db").display()), dir: Some(dir) }
    }

    pub(crate) fn worker(&self) -> Worker {
        worker(&self.url)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            std::fs::remove_dir_all(dir).unwrap();
        }
    }
}

fn worker(url: &str) -> Worker {
    Worker::start(Path::new(env!("CARGO_BIN_EXE_memory_worker")), url)
}

/// A server to be killed, and the runtime that starts it again.
pub(crate) struct OwnPlace {
    runtime: Runtime,
    server: OwnServer,
}

impl OwnPlace {
    pub(crate) fn start(server: impl Future<Output = OwnServer>) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(server);
        Self { runtime, server }
    }

    pub(crate) fn worker(&self) -> Worker {
        worker(self.server.url())
    }

    pub(crate) fn kill9(&mut self) {
        self.server.kill9();
    }

    pub(crate) fn restart(&mut self) {
        self.runtime.block_on(self.server.restart());
    }
}

/// A namespace that nobody else has.
pub(crate) fn namespace() -> String {
    format!("proc-{:016x}", rand::random::<u64>())
}
