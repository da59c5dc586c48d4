//! The collections on disk, and the lock that makes every update of one wait for the one before.
//!
//! The engine writes its log ahead and does not play it back when it is opened again, and writing out its segments for each
//! update takes tens of milliseconds. So a collection is what its own log says: each update is appended before it is
//! applied, and the engine's files are made anew from it at the start. The log is not synced: what was acknowledged
//! survives the death of this process, which is what tests look for, and not the loss of power.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use qdrant_edge::external::serde_json;
use qdrant_edge::{EdgeConfig, EdgeShard, OperationError, UpdateOperation, WalOptions};
use tonic::Status;

/// A collection's configuration. Its directory counts as one from the moment that this is in it.
const CONFIG: &str = "config.json";

/// All collections of a directory.
#[derive(Debug)]
pub(crate) struct Engine {
    dir: PathBuf,
    collections: Mutex<BTreeMap<String, Arc<Collection>>>,
}

/// One collection: one shard.
#[derive(Debug)]
pub(crate) struct Collection {
    /// The log; held for the whole of an update.
    updates: Mutex<File>,
    /// `None` once it was deleted: the engine's files must not be taken away under a reader.
    shard: RwLock<Option<EdgeShard>>,
}

impl Engine {
    pub(crate) fn open(dir: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let mut collections = BTreeMap::new();
        for entry in std::fs::read_dir(dir).map_err(|e| e.to_string())? {
            let path = entry.map_err(|e| e.to_string())?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(decode) else { continue };
            if path.join(CONFIG).exists() {
                let collection = Collection::open(&path).map_err(|e| format!("collection {name}: {e}"))?;
                collections.insert(name, Arc::new(collection));
            } else {
                // Its creation was cut short, and nobody was told that it is there.
                std::fs::remove_dir_all(&path).map_err(|e| e.to_string())?;
            }
        }
        Ok(Self { dir: dir.to_owned(), collections: Mutex::new(collections) })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.collections).keys().cloned().collect()
    }

    pub(crate) fn get(&self, name: &str) -> Result<Arc<Collection>, Status> {
        lock(&self.collections).get(name).cloned().ok_or_else(|| missing(name))
    }

    pub(crate) fn create(&self, name: &str, mut config: EdgeConfig) -> Result<(), Status> {
        let mut collections = lock(&self.collections);
        if collections.contains_key(name) {
            return Err(Status::already_exists(format!("Wrong input: Collection `{name}` already exists!")));
        }
        if name.is_empty() || name.len() > 100 {
            return Err(Status::invalid_argument("Validation error in body: [collection_name: length]"));
        }
        config.wal_options = Some(WalOptions {
            segment_capacity: 1024 * 1024,
            segment_queue_len: 0,
            retain_closed: NonZeroUsize::MIN,
        });
        let path = self.dir.join(encode(name));
        let create = || -> Result<Collection, Box<dyn std::error::Error>> {
            std::fs::create_dir_all(&path)?;
            let written = path.join("config.new");
            std::fs::write(&written, serde_json::to_vec(&config)?)?;
            std::fs::rename(&written, path.join(CONFIG))?;
            Collection::open(&path)
        };
        let collection = create().map_err(|e| Status::internal(e.to_string()))?;
        collections.insert(name.to_owned(), Arc::new(collection));
        Ok(())
    }

    /// Whether there was one.
    pub(crate) fn delete(&self, name: &str) -> Result<bool, Status> {
        let Some(collection) = lock(&self.collections).remove(name) else { return Ok(false) };
        let path = self.dir.join(encode(name));
        drop(collection.shard.write().unwrap_or_else(PoisonError::into_inner).take());
        std::fs::remove_file(path.join(CONFIG)).map_err(|e| Status::internal(e.to_string()))?;
        std::fs::remove_dir_all(&path).map_err(|e| Status::internal(e.to_string()))?;
        Ok(true)
    }
}

impl Collection {
    /// The collection that a directory's configuration and log describe.
    fn open(path: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let config: EdgeConfig = serde_json::from_slice(&std::fs::read(path.join(CONFIG))?)?;
        let (engine, log) = (path.join("engine"), path.join("updates.log"));
        if engine.exists() {
            std::fs::remove_dir_all(&engine)?;
        }
        std::fs::create_dir_all(&engine)?;
        let shard = EdgeShard::new(&engine, config)?;
        let mut whole = 0;
        if log.exists() {
            let mut lines = BufReader::new(File::open(&log)?);
            let mut line = String::new();
            while lines.read_line(&mut line)? > 0 && line.ends_with('\n') {
                whole += line.len() as u64;
                // What failed the first time fails again.
                let _ = shard.update(serde_json::from_str(&line)?);
                line.clear();
            }
        }
        let log = File::options().create(true).append(true).open(&log)?;
        // The last update may have been cut short, and then nobody was told that it is there.
        log.set_len(whole)?;
        Ok(Self { updates: Mutex::new(log), shard: RwLock::new(Some(shard)) })
    }

    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&EdgeShard) -> Result<T, OperationError>,
    ) -> Result<T, Status> {
        let shard = self.shard.read().unwrap_or_else(PoisonError::into_inner);
        read(shard.as_ref().ok_or_else(|| missing(""))?).map_err(status)
    }

    /// Applies updates one after the other; each is in the log before it is applied.
    pub(crate) fn update(&self, operations: Vec<UpdateOperation>) -> Result<(), Status> {
        let mut log = lock(&self.updates);
        for operation in operations {
            let mut line = serde_json::to_vec(&operation).map_err(|e| Status::internal(e.to_string()))?;
            line.push(b'\n');
            log.write_all(&line).map_err(|e| Status::internal(e.to_string()))?;
            self.read(|shard| shard.update(operation))?;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn missing(name: &str) -> Status {
    Status::not_found(format!("Not found: Collection `{name}` doesn't exist!"))
}

/// The code that the server gives the same error.
fn status(error: OperationError) -> Status {
    let text = error.to_string();
    match error {
        OperationError::PointIdError { .. } => Status::not_found(text),
        OperationError::ServiceError { .. }
        | OperationError::InconsistentStorage { .. }
        | OperationError::OutOfMemory { .. } => Status::internal(text),
        OperationError::Cancelled { .. } => Status::cancelled(text),
        OperationError::Timeout { .. } => Status::deadline_exceeded(text),
        _ => Status::invalid_argument(format!("Wrong input: {text}")),
    }
}

/// A collection's directory: its name in hex, whatever is in it.
fn encode(name: &str) -> String {
    name.bytes().fold("c".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn decode(name: &str) -> Option<String> {
    let hex = name.strip_prefix('c')?;
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    String::from_utf8((0..hex.len()).step_by(2).map(byte).collect::<Option<Vec<_>>>()?).ok()
}
