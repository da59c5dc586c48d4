//! Where a memory is, and processes that work on it.

use std::path::{Path, PathBuf};

use tokio::runtime::Runtime;

use crate::own::OwnServer;
use crate::services;
use crate::worker::Worker;

/// A store's URL, and the file behind it if that is ours.
#[derive(Debug)]
pub struct Place {
    program: PathBuf,
    url: String,
    dir: Option<PathBuf>,
}

impl Place {
    /// A service that others use, too. `program` is the binary `memory_worker`; `prefix` makes a URL of the service's.
    ///
    /// # Panics
    ///
    /// When the service is not up.
    pub fn service(program: &Path, name: &str, prefix: &str) -> Self {
        Self { program: program.to_owned(), url: format!("{prefix}{}", services::url(name)), dir: None }
    }

    /// A file of its own.
    ///
    /// # Panics
    ///
    /// When there is no directory for temporary files.
    pub fn sqlite(program: &Path) -> Self {
        let dir = std::env::temp_dir().join(format!("loomflow-processes-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&dir).expect("a directory for temporary files");
        let url = format!("sqlite:{}", dir.join("memory.db").display());
        Self { program: program.to_owned(), url, dir: Some(dir) }
    }

    /// A process that works on it.
    pub fn worker(&self) -> Worker {
        Worker::start(&self.program, &self.url)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            // A file that is left behind is no reason to fail.
            let _left = std::fs::remove_dir_all(dir);
        }
    }
}

/// A server to be killed, and the runtime that starts it again.
#[derive(Debug)]
pub struct OwnPlace {
    program: PathBuf,
    runtime: Runtime,
    server: OwnServer,
}

impl OwnPlace {
    /// Starts the server. `program` is the binary `memory_worker`.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn start(program: &Path, server: impl Future<Output = OwnServer>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a thread can be started");
        let server = runtime.block_on(server);
        Self { program: program.to_owned(), runtime, server }
    }

    /// A process that works on it.
    pub fn worker(&self) -> Worker {
        Worker::start(&self.program, self.server.url())
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.server.kill9();
    }

    /// Starts it again on what it had written.
    pub fn restart(&mut self) {
        self.runtime.block_on(self.server.restart());
    }
}

/// A namespace that nobody else has.
pub fn namespace() -> String {
    format!("proc-{:016x}", rand::random::<u64>())
}
