//! `cargo xtask bench-tenants`: builds the load driver in release mode, runs it, and compares its report.
//!
//! The driver measures; this room only builds, passes flags through and compares. Nothing here writes to stdout, which
//! belongs to the driver: with `--json /dev/stdout --quiet` it carries the report and nothing else.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use cargo_metadata::Message;

use crate::baseline::{self, Report};
use crate::process;
use crate::{Failure, Outcome};

/// The driver's feature that `--fault` needs.
const FAULT: &str = "fault-injection";

/// The driver's features that a scheme needs, of a memory and of a ledger. Every other one needs none, or is the driver's
/// to refuse.
const STORES: [(&str, &str, Option<&str>); 6] = [
    ("sqlite", "memory-sqlite", Some("ledger-sqlite")),
    ("postgres", "memory-postgres", Some("ledger-postgres")),
    ("postgresql", "memory-postgres", Some("ledger-postgres")),
    ("redis", "memory-redis", Some("ledger-redis")),
    ("rediss", "memory-redis", Some("ledger-redis")),
    ("qdrant", "memory-qdrant", None),
];

/// The stores in the driver's own process.
const EMBEDDED: &str = "inmemory";

/// The faults the driver can be asked to make.
pub(crate) const FAULTS: [&str; 3] = ["leak", "double_charge", "lost_audit"];

/// Builds and runs the driver with `args`; compares its report when they hold `--baseline FILE`.
pub(crate) fn run(root: &Path, args: Vec<OsString>) -> Outcome {
    let flags = Flags::parse(args)?;
    // Read before anything is built or measured: a missing file should not cost a run.
    let old = flags.baseline.as_deref().map(Report::read).transpose()?;
    let driver = build(root, &flags.features(), flags.quiet)?;
    let Some(old) = old else {
        return pass_on(process::program(root, driver).args(&flags.rest));
    };
    let wanted = flags.json.as_deref();
    let to_stdout = wanted.is_some_and(|path| path == Path::new("/dev/stdout"));
    let path = match wanted {
        Some(path) if !to_stdout => path.to_owned(),
        _ => scratch_report(root)?,
    };
    let mut command = process::program(root, driver);
    command.args(&flags.rest).arg("--json").arg(&path);
    pass_on(&mut command)?;
    let new = Report::read(&path)?;
    if to_stdout {
        print!("{}", new.text());
    }
    let verdict = baseline::compare(&old, &new)?;
    if !flags.quiet {
        eprintln!("{verdict}");
    }
    verdict.into_outcome()
}

/// Runs the smoke load with a deliberate fault; an undetected fault is a failure.
pub(crate) fn expect_caught(root: &Path, fault: &str) -> Outcome {
    caught(root, &build(root, &[FAULT], true)?, fault, EMBEDDED, EMBEDDED)
}

/// The smoke load on each store, sound and with a leak; `urls` have the names they are told of by.
pub(crate) fn on_every_store(root: &Path, urls: &[(&str, String)]) -> Outcome {
    let mut features: Vec<&str> = vec![FAULT];
    features.extend(STORES.iter().flat_map(|(_, memory, ledger)| [Some(*memory), *ledger]).flatten());
    features.sort_unstable();
    features.dedup();
    let driver = build(root, &features, true)?;
    for (name, url) in urls {
        // Where there is no such ledger, the embedded one.
        let ledger =
            if features_of(url).is_some_and(|(_, ledger)| ledger.is_some()) { url } else { EMBEDDED };
        pass_on(process::program(root, &driver).args(["--smoke", "--memory", url, "--ledger", ledger]))?;
        caught(root, &driver, "leak", url, EMBEDDED)?;
        caught(root, &driver, "double_charge", EMBEDDED, ledger)?;
        println!("  {name}: sound, and the faults `leak` and `double_charge` were caught");
    }
    Ok(())
}

fn caught(root: &Path, driver: &Path, fault: &str, memory: &str, ledger: &str) -> Outcome {
    let path = scratch_report(root)?;
    if path.exists() {
        std::fs::remove_file(&path).map_err(|e| unusable(&path, &e))?;
    }
    let mut command = process::program(root, driver);
    command.args(["--smoke", "--quiet", "--memory", memory, "--ledger", ledger, "--fault", fault]);
    command.arg("--json").arg(&path);
    let output = process::capture(&mut command)?;
    if output.status.code() != Some(1) {
        return Err(Failure::Failed(format!(
            "`{}` must end with exit code 1 and ended with {}",
            process::shown(&command),
            output.status
        )));
    }
    // Exit code 1 alone could be a crash: the report must say what was seen.
    Report::read(&path)?.expect_alarm(fault)
}

#[derive(Debug, Default)]
struct Flags {
    baseline: Option<PathBuf>,
    json: Option<PathBuf>,
    fault: bool,
    quiet: bool,
    /// The features of the stores that `--memory` and `--ledger` name.
    stores: Vec<&'static str>,
    /// What the driver gets. Without a baseline that is everything; with one, `--json` is set anew.
    rest: Vec<OsString>,
}

impl Flags {
    /// Looks for the flags that matter here; every other one, known or not, is the driver's to judge.
    fn parse(args: Vec<OsString>) -> Outcome<Self> {
        let mut flags = Self::default();
        let mut json = Vec::new();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            if let Some((value, _)) = take_value(&arg, "--baseline", &mut args)? {
                flags.baseline = Some(value.into());
            } else if let Some((value, spelled)) = take_value(&arg, "--json", &mut args)? {
                flags.json = Some(value.into());
                json = spelled;
            } else if let Some((url, mut spelled)) = take_value(&arg, "--memory", &mut args)? {
                flags.stores.extend(features_of(&url.to_string_lossy()).map(|(memory, _)| memory));
                flags.rest.append(&mut spelled);
            } else if let Some((url, mut spelled)) = take_value(&arg, "--ledger", &mut args)? {
                flags.stores.extend(features_of(&url.to_string_lossy()).and_then(|(_, ledger)| ledger));
                flags.rest.append(&mut spelled);
            } else {
                flags.fault |= arg == "--fault" || arg.to_string_lossy().starts_with("--fault=");
                flags.quiet |= arg == "--quiet";
                flags.rest.push(arg);
            }
        }
        if flags.baseline.is_none() {
            flags.rest.append(&mut json);
        }
        Ok(flags)
    }

    /// What the driver is built with: nothing that was not asked for, so that the embedded load stays what it was.
    fn features(&self) -> Vec<&'static str> {
        self.fault.then_some(FAULT).into_iter().chain(self.stores.iter().copied()).collect()
    }
}

fn features_of(url: &str) -> Option<(&'static str, Option<&'static str>)> {
    let scheme = url.split(':').next().unwrap_or_default();
    let known = STORES.iter().find(|(known, ..)| known.eq_ignore_ascii_case(scheme));
    known.map(|(_, memory, ledger)| (*memory, *ledger))
}

/// The value of `--flag VALUE` or `--flag=VALUE`, and the arguments it was spelled with.
fn take_value(
    arg: &OsStr,
    flag: &str,
    rest: &mut impl Iterator<Item = OsString>,
) -> Outcome<Option<(OsString, Vec<OsString>)>> {
    if arg == flag {
        let value = rest.next().ok_or_else(|| Failure::Usage(format!("{flag} needs a value")))?;
        return Ok(Some((value.clone(), vec![arg.to_owned(), value])));
    }
    let text = arg.to_string_lossy();
    let value = text.strip_prefix(flag).and_then(|rest| rest.strip_prefix('='));
    Ok(value.map(|value| (value.into(), vec![arg.to_owned()])))
}

/// Builds the driver and returns its path. Cargo's output is shown only when the build fails.
fn build(root: &Path, features: &[&str], quiet: bool) -> Outcome<PathBuf> {
    if !quiet {
        eprintln!("building the load driver in release mode (some minutes the first time)");
    }
    let mut cargo = process::cargo(root);
    cargo.args(["build", "--release", "--locked", "--package", "loomflow-bench", "--bin", "tenants"]);
    cargo.arg("--message-format=json-render-diagnostics");
    if !features.is_empty() {
        cargo.args(["--features", &features.join(",")]);
    }
    let output = process::capture(&mut cargo)?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(Failure::Failed(format!("`{}` ended with {}", process::shown(&cargo), output.status)));
    }
    Message::parse_stream(&output.stdout[..])
        .filter_map(Result::ok)
        .find_map(|message| match message {
            Message::CompilerArtifact(artifact) if artifact.target.name == "tenants" => artifact.executable,
            _ => None,
        })
        .map(PathBuf::from)
        .ok_or_else(|| Failure::Failed("cargo built the load driver and did not say where it is".to_owned()))
}

/// Runs the driver on our own streams and passes its exit code on.
fn pass_on(command: &mut std::process::Command) -> Outcome {
    let status = command
        .status()
        .map_err(|e| Failure::Failed(format!("`{}` could not be started: {e}", process::shown(command))))?;
    match status.code() {
        Some(0) => Ok(()),
        // A signal has no code; to a caller it is a failure like any other.
        code => Err(Failure::Exit(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))),
    }
}

fn scratch_report(root: &Path) -> Outcome<PathBuf> {
    let dir = root.join("target").join("bench-tenants");
    std::fs::create_dir_all(&dir).map_err(|e| unusable(&dir, &e))?;
    Ok(dir.join(format!("report-{}.json", std::process::id())))
}

fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Flags {
        Flags::parse(args.iter().map(OsString::from).collect()).unwrap()
    }

    #[test]
    fn unknown_flags_go_to_the_driver_untouched() {
        let flags = parse(&["--users", "7", "--new-flag", "--json", "/dev/stdout", "--quiet"]);
        assert_eq!(flags.rest, ["--users", "7", "--new-flag", "--quiet", "--json", "/dev/stdout"]);
        assert!(flags.quiet && !flags.fault && flags.baseline.is_none());
    }

    #[test]
    fn a_baseline_is_ours_and_takes_the_report_with_it() {
        for spelled in [
            &["--baseline", "old.json", "--json=new.json"][..],
            &["--baseline=old.json", "--json", "new.json"],
        ] {
            let flags = parse(spelled);
            assert_eq!(flags.baseline.as_deref(), Some(Path::new("old.json")));
            assert_eq!(flags.json.as_deref(), Some(Path::new("new.json")));
            assert!(flags.rest.is_empty(), "{flags:?}");
        }
        assert!(matches!(Flags::parse(vec!["--baseline".into()]), Err(Failure::Usage(_))));
    }

    #[test]
    fn a_store_asks_for_its_feature_and_goes_to_the_driver() {
        let flags =
            parse(&["--memory", "postgres://u:p@h/d", "--fault=leak", "--smoke", "--ledger=redis://h"]);
        assert_eq!(flags.features(), ["fault-injection", "memory-postgres", "ledger-redis"]);
        assert_eq!(
            flags.rest,
            ["--memory", "postgres://u:p@h/d", "--fault=leak", "--smoke", "--ledger=redis://h"]
        );
        for (url, memory, ledger) in [
            ("sqlite:x.db", vec!["memory-sqlite"], vec!["ledger-sqlite"]),
            ("Redis://h", vec!["memory-redis"], vec!["ledger-redis"]),
            ("qdrant:http://h", vec!["memory-qdrant"], vec![]),
            ("inmemory", vec![], vec![]),
        ] {
            assert_eq!(parse(&[&format!("--memory={url}")]).features(), memory, "{url}");
            assert_eq!(parse(&["--ledger", url]).features(), ledger, "{url}");
        }
    }

    #[test]
    fn a_fault_asks_for_the_feature_however_it_is_spelled() {
        assert!(parse(&["--fault", "leak"]).fault);
        assert!(parse(&["--fault=leak"]).fault);
        assert!(!parse(&["--faults"]).fault);
    }
}
