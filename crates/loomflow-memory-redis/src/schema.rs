//! The one place where a scope becomes keys and filters, and the version of what lies under them.
//!
//! All keys of a tenant are `prefix:{<hex>}:<kind>`, where the hex is the SHA-256 of the owner's encoding:
//!
//! | kind | what | entries |
//! |---|---|---|
//! | `e` | string | the epoch and that of the last erasure of everything, 20 digits each; never expires |
//! | `m` | hash | `n`, `u`: whose it is; `model`, `dim` of vectors; `ver`, `fver`: versions; `newest` `known_from` |
//! | `ep`, `ev` | hash | episode id → row, vector |
//! | `ix` | hash | episode id → entry of the index that recall scans |
//! | `or`, `os` | sorted set by bytes | time and id; session, time and id |
//! | `bl` | hash | name of a block → place and row |
//! | `fa`, `fv` | hash | fact id → row, vector |
//! | `fb` | sorted set by bytes | subject with predicate, object, id of believed rows |
//! | `vd`, `t`, `t<epoch>` | set, list, sets | entries of the search index: those that count, those to be cleared away |
//!
//! Entries of the search index are `prefix:v:<dimensions>:{<hex>}:<generation><e or f><id in hex>`.

use loomflow_core::resilience::Repeat;
use loomflow_core::{Error, ErrorKind, Owner, Result};
use loomflow_support_redis::{Keys, Link, TenantKeys};

use crate::config::RedisMemoryConfig;

/// The version of the form above.
const VERSION: u32 = 1;
const VERSION_KEY: &str = "schema";

/// Names keys.
#[derive(Clone, Debug)]
pub(crate) struct Schema {
    keys: Keys,
    #[cfg(feature = "testing")]
    fault: Option<crate::config::Fault>,
}

impl Schema {
    pub(crate) fn new(config: &RedisMemoryConfig) -> Result<Self> {
        Ok(Self {
            keys: Keys::new(&config.key_prefix)?,
            #[cfg(feature = "testing")]
            fault: config.fault,
        })
    }

    /// The keys of a tenant, and the value of the filter `p` in the search index.
    pub(crate) fn tenant(&self, owner: &Owner) -> TenantKeys {
        #[cfg(feature = "testing")]
        if self.fault.is_some() {
            return self.keys.of_partition("0".repeat(64));
        }
        self.keys.of(owner)
    }

    /// What all keys of a partition begin with.
    pub(crate) fn base_of(&self, partition: &str) -> String {
        self.keys.of_partition(partition.to_owned()).base().to_owned()
    }

    /// What entries of the search index begin with.
    pub(crate) fn search_prefix(&self) -> String {
        format!("{}:v:", self.keys.prefix())
    }

    /// The query for the vectors of one tenant and one kind (`e` or `f`), nearest first. Every part is hex digits or ours,
    /// because the search index folds case and splits at commas.
    pub(crate) fn nearest(&self, tenant: &TenantKeys, generation: &str, kind: char, count: usize) -> String {
        let group = format!("@g:{{{generation}{kind}}}");
        #[cfg(feature = "testing")]
        if self.fault.is_some() {
            return format!("({group})=>[KNN {count} @v $q AS d]");
        }
        format!("(@p:{{{}}} {group})=>[KNN {count} @v $q AS d]", tenant.partition())
    }

    /// Tenants whose erasure was begun, and whose entries in the search index may still be there.
    pub(crate) fn unfinished(&self) -> String {
        self.keys.shared("sweep")
    }

    /// Brings the schema up to date, or only checks that it is.
    pub(crate) async fn prepare(&self, link: &Link, migrate: bool) -> Result<()> {
        let key = self.keys.shared(VERSION_KEY);
        if migrate {
            let mut set = redis::cmd("SET");
            set.arg(&key).arg(VERSION).arg("NX");
            link.command::<redis::Value>("migrate", Repeat::Safe, &set).await?;
        }
        let stored: Option<String> =
            link.command("migrate", Repeat::Safe, redis::cmd("GET").arg(&key)).await?;
        check(self.keys.prefix(), stored.as_deref())
    }
}

fn check(prefix: &str, stored: Option<&str>) -> Result<()> {
    let why = match stored.map(str::parse::<u32>) {
        Some(Ok(VERSION)) => return Ok(()),
        Some(Ok(newer)) if newer > VERSION => format!(
            "is version {newer}, and this program knows versions up to {VERSION}: it was written by a newer program and is \
             left untouched. Upgrade this program, or set another `key_prefix`"
        ),
        Some(Ok(older)) => {
            format!(
                "is version {older}, and this program needs {VERSION}: run the migration, or set `migrate`"
            )
        }
        Some(Err(_)) => {
            "has a version that is no number: another program uses the prefix. Set another `key_prefix`"
                .to_owned()
        }
        None => format!(
            "is missing (version 0), and this program needs {VERSION}: run the migration, or set `migrate`"
        ),
    };
    let message = format!("the schema of the memory under the prefix `{prefix}` in Redis {why}");
    Err(Error::new(ErrorKind::Config, message).with_operation("migrate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_of_another_version_is_refused_by_both_numbers() {
        assert!(check("lf", Some("1")).is_ok());
        for (stored, part) in [
            (Some("7"), "version 7"),
            (Some("0"), "version 0"),
            (None, "version 0"),
            (Some("x"), "no number"),
        ] {
            let error = check("lf", stored).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
