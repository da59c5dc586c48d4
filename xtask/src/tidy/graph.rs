//! Rules about who may depend on whom, as the manifests declare it.

use std::path::Path;

use cargo_metadata::{DependencyKind, MetadataCommand};

use super::Finding;
use crate::{Failure, Outcome};

const RULE: &str = "dependency";
pub(super) const CORE: &str = "loomflow-core";
const FACADE: &str = "loomflow";
const SUPPORT: &str = "loomflow-support-";
/// Never published: what tests of several crates share.
const TESTS: &str = "loomflow-tests";

/// Families of crates that implement one of core's traits for one driver.
const BACKENDS: [&str; 6] = [
    "loomflow-memory-",
    "loomflow-ledger-",
    "loomflow-audit-",
    "loomflow-secrets-",
    "loomflow-runtime-",
    "loomflow-model-",
];

/// Everything core may name: vocabulary, serialisation, hashing, and tokio without a reactor.
const CORE_MAY: [&str; 13] = [
    "async-trait",
    "futures-core",
    "futures-util",
    "hmac",
    "rand",
    "serde",
    "serde_json",
    "sha2",
    "time",
    "tokio",
    "unicode-properties",
    "zeroize",
    "parking_lot",
];

/// A workspace member, as plain data.
#[derive(Clone, Debug)]
pub(super) struct Package {
    pub(super) name: String,
    /// Its directory, relative to the root.
    pub(super) dir: String,
    /// Roots of its libraries and binaries, relative to the workspace's root.
    pub(super) roots: Vec<String>,
    pub(super) dependencies: Vec<Dependency>,
}

/// A declared dependency.
#[derive(Clone, Debug)]
pub(super) struct Dependency {
    pub(super) name: String,
    pub(super) is_dev: bool,
}

/// The workspace's members.
pub(super) fn packages(root: &Path) -> Outcome<Vec<Package>> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .map_err(|e| Failure::Failed(format!("cargo metadata: {e}")))?;
    let relative = |path: &cargo_metadata::camino::Utf8Path| {
        path.strip_prefix(&metadata.workspace_root).unwrap_or(path).as_str().replace('\\', "/")
    };
    let packages = metadata.packages.iter().map(|package| Package {
        name: package.name.to_string(),
        dir: package.manifest_path.parent().map(relative).unwrap_or_default(),
        roots: package
            .targets
            .iter()
            .filter(|t| t.is_lib() || t.is_bin() || t.is_proc_macro())
            .map(|t| relative(&t.src_path))
            .collect(),
        dependencies: package
            .dependencies
            .iter()
            .map(|d| Dependency { name: d.name.clone(), is_dev: d.kind == DependencyKind::Development })
            .collect(),
    });
    Ok(packages.collect())
}

pub(super) fn is_backend(name: &str) -> bool {
    BACKENDS.iter().any(|family| name.starts_with(family))
}

pub(super) fn check(packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages.iter().filter(|p| p.dir.starts_with("crates/")) {
        let manifest = format!("{}/Cargo.toml", package.dir);
        let mut refuse = |message: String| findings.push(Finding::new(&manifest, 0, RULE, message));
        let ours = |d: &&Dependency| d.name == FACADE || d.name.starts_with("loomflow-");
        for dependency in package.dependencies.iter().filter(ours) {
            if let Some(why) = refusal(&package.name, dependency) {
                refuse(format!("{} depends on {}: {why}", package.name, dependency.name));
            }
        }
        let supports = package.dependencies.iter().filter(|d| d.name.starts_with(SUPPORT)).count();
        if is_backend(&package.name) && supports > 1 {
            refuse(format!("{} stands on {supports} support crates; one store has one", package.name));
        }
        if package.name == CORE {
            let outside = |d: &&Dependency| !d.is_dev && !CORE_MAY.contains(&d.name.as_str());
            for dependency in package.dependencies.iter().filter(outside) {
                refuse(format!("core depends on {}, which is not on its list", dependency.name));
            }
        }
    }
    findings
}

/// Why a crate must not depend on another of ours; `None` when it may.
fn refusal(from: &str, to: &Dependency) -> Option<&'static str> {
    let is_app = |name: &str| name == "loomflow-serve" || name == "loomflow-cli";
    let conformance = to.name == "loomflow-conformance";
    if is_app(from) {
        return None;
    }
    if is_app(&to.name) {
        return Some("nothing sits on the service or the command line");
    }
    match from {
        FACADE if conformance && !to.is_dev => Some("the suites are for tests"),
        FACADE => None,
        CORE | "loomflow-macros" => Some("core and the macros depend on nothing of ours"),
        "loomflow-conformance" if to.name == CORE => None,
        "loomflow-conformance" => Some("the suites know core alone, so that anybody can run them"),
        _ if to.name == FACADE => Some("nothing below the facade depends on it"),
        _ if to.name == CORE || to.name == "loomflow-macros" => None,
        _ if conformance && to.is_dev => None,
        _ if to.name == TESTS && to.is_dev => None,
        _ if conformance => Some("the suites are for tests"),
        _ if from.starts_with(SUPPORT) => Some("a support crate stands on core alone"),
        _ if to.name.starts_with(SUPPORT) => None,
        _ => Some("implementations of traits do not know each other"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_rules;
    use super::*;

    fn package(name: &str, dependencies: &[&str], dev: &[&str]) -> Package {
        let of = |names: &[&str], is_dev| {
            names.iter().map(|n| Dependency { name: (*n).to_owned(), is_dev }).collect::<Vec<_>>()
        };
        Package {
            name: name.to_owned(),
            dir: format!("crates/{name}"),
            roots: Vec::new(),
            dependencies: [of(dependencies, false), of(dev, true)].concat(),
        }
    }

    fn broken(name: &str, dependencies: &[&str], dev: &[&str]) -> usize {
        let findings = check(&[package(name, dependencies, dev)]);
        assert_rules(&findings, &vec![RULE; findings.len()]);
        findings.len()
    }

    #[test]
    fn the_house_as_it_is_meant_is_silent() {
        let driver = ["loomflow-core", "loomflow-support-sql", "sqlx"];
        assert_eq!(broken("loomflow-memory-postgres", &driver, &["loomflow-conformance"]), 0);
        let tests = ["loomflow-conformance", "loomflow-tests"];
        assert_eq!(broken("loomflow-local", &["loomflow-core", "moka"], &tests), 0);
        assert_eq!(broken("loomflow", &["loomflow-core", "loomflow-local", "loomflow-memory-redis"], &[]), 0);
        assert_eq!(broken("loomflow-serve", &["loomflow", "hyper"], &[]), 0);
        assert_eq!(broken("loomflow-core", &["tokio", "serde"], &["proptest"]), 0);
    }

    #[test]
    fn backends_know_core_and_one_support_crate() {
        for wrong in
            ["loomflow", "loomflow-ledger-redis", "loomflow-local", "loomflow-serve", "loomflow-conformance"]
        {
            assert_eq!(broken("loomflow-memory-redis", &["loomflow-core", wrong], &[]), 1, "{wrong}");
        }
        assert_eq!(broken("loomflow-memory-redis", &["loomflow-tests"], &[]), 1);
        assert_eq!(broken("loomflow-memory-redis", &[], &["loomflow-ledger-redis"]), 1);
        assert_eq!(broken("loomflow-memory-x", &["loomflow-support-sql", "loomflow-support-redis"], &[]), 1);
        assert_eq!(broken("loomflow-support-sql", &["loomflow-memory-postgres"], &[]), 1);
    }

    #[test]
    fn core_and_the_suites_stand_alone() {
        assert_eq!(broken("loomflow-core", &["reqwest"], &[]), 1);
        assert_eq!(broken("loomflow-core", &["loomflow-local"], &[]), 2);
        assert_eq!(
            broken("loomflow-core", &[], &["loomflow-conformance"]),
            1,
            "core would be compiled twice"
        );
        assert_eq!(broken("loomflow-conformance", &["loomflow-local"], &[]), 1);
        assert_eq!(broken("loomflow", &["loomflow-serve"], &[]), 1);
    }

    #[test]
    fn the_real_workspace_is_read() {
        let packages = packages(&crate::workspace_root()).unwrap();
        let core = packages.iter().find(|p| p.name == CORE).unwrap();
        assert_eq!(core.dir, "crates/loomflow-core");
        assert_eq!(core.roots, ["crates/loomflow-core/src/lib.rs"]);
        assert!(core.dependencies.iter().any(|d| d.name == "tokio" && !d.is_dev));
    }
}
