//! `cargo xtask fuzz`: builds the fuzz targets with a sanitizer and runs each for a bounded time.
//!
//! Everything that is made lies in `target/fuzz`: the corpus, which grows from run to run, the seeds, the logs, and the
//! inputs that broke a target. Nothing here needs a nightly toolchain: the sanitizer's runtime comes with the stable one,
//! and `RUSTC_BOOTSTRAP` lets it be used.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Args;

use crate::tools::CARGO_FUZZ;
use crate::{Failure, Outcome, process};

/// The seconds each target gets within the gate.
pub(crate) const GATE_SECONDS: u32 = 10;

/// The largest input. Bounds beyond it are tested with inputs made for them.
const MAX_LEN: u64 = 1 << 16;

/// What to fuzz, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Names of targets; all of them when there is none.
    targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Runs the one target on this file, once, and shows everything it says.
    #[arg(long, value_name = "FILE", conflicts_with = "seconds")]
    input: Option<PathBuf>,
}

/// `cargo xtask fuzz ...`
pub(crate) fn run(root: &Path, flags: &Flags) -> Outcome {
    let targets = choose(targets(root)?, &flags.targets)?;
    let tool = CARGO_FUZZ.find_or_install(root)?;
    let room = Room { root, tool: &tool };
    let Some(input) = &flags.input else { return room.all(&targets, flags.seconds) };
    match targets.first() {
        Some(target) if targets.len() == 1 => room.once(target, input),
        _ => Err(Failure::Usage("--input needs exactly one target".to_owned())),
    }
}

/// Every target, briefly.
pub(crate) fn gate(root: &Path, tool: &Path) -> Outcome {
    Room { root, tool }.all(&targets(root)?, GATE_SECONDS)
}

/// The targets there are: the files of `fuzz/fuzz_targets`.
fn targets(root: &Path) -> Outcome<BTreeSet<String>> {
    let files = files(&root.join("fuzz").join("fuzz_targets"))?;
    let sources = files.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "rs"));
    Ok(sources.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect())
}

struct Room<'a> {
    root: &'a Path,
    tool: &'a Path,
}

impl Room<'_> {
    /// A directory of `target/fuzz`, made if need be.
    fn dir(&self, kind: &str, target: &str) -> Outcome<PathBuf> {
        let dir = self.root.join("target").join("fuzz").join(kind).join(target);
        std::fs::create_dir_all(&dir).map_err(|e| unusable(&dir, &e))?;
        Ok(dir)
    }

    fn all(&self, targets: &BTreeSet<String>, seconds: u32) -> Outcome {
        let began = Instant::now();
        println!("  building {} targets with a sanitizer (one to two minutes the first time)", targets.len());
        process::run(&mut self.cargo_fuzz("build"))?;
        println!("  built in {} s", began.elapsed().as_secs());
        let mut broken = Vec::new();
        for target in targets {
            if let Err(Failure::Failed(why)) = self.one(target, seconds) {
                println!("  {target}: BROKEN\n{why}");
                broken.push(target.as_str());
            }
        }
        if broken.is_empty() {
            return Ok(());
        }
        Err(Failure::Failed(format!(
            "fuzzing broke {}; see above for how to see it again",
            broken.join(", ")
        )))
    }

    /// Runs one target for a while. What it says goes to a log.
    fn one(&self, target: &str, seconds: u32) -> Outcome {
        let (corpus, artifacts) = (self.dir("corpus", target)?, self.dir("artifacts", target)?);
        let seeds = self.seeds(target)?;
        let before = files(&artifacts)?;
        let mut command = self.cargo_fuzz("run");
        command.arg(target).arg(&corpus).arg(&seeds).arg("--");
        command.args(limits(&artifacts)).arg(format!("-max_total_time={seconds}"));
        command.arg("-print_final_stats=1");
        let dictionary = self.root.join("fuzz").join("dictionaries").join(format!("{}.dict", family(target)));
        if dictionary.is_file() {
            command.arg(format!("-dict={}", dictionary.display()));
        }
        let output = process::capture(&mut command)?;
        let said = [output.stdout, output.stderr].concat();
        let log = self.dir("logs", "")?.join(format!("{target}.log"));
        std::fs::write(&log, &said).map_err(|e| unusable(&log, &e))?;
        let said = String::from_utf8_lossy(&said);
        if output.status.success() {
            let (runs, peak) = (stat(&said, "number_of_executed_units"), stat(&said, "peak_rss_mb"));
            println!("  {target}: {runs} inputs in {seconds} s, {peak} MB at most; nothing broke");
            return Ok(());
        }
        let found: Vec<PathBuf> =
            files(&artifacts)?.into_iter().filter(|path| !before.contains(path)).collect();
        Err(Failure::Failed(broken(target, &said, &found, &log, self.root)))
    }

    /// Runs one target on one input, on our own streams.
    fn once(&self, target: &str, input: &Path) -> Outcome {
        // Relative to where the caller stands, and the children stand elsewhere.
        let input = std::path::absolute(input).map_err(|e| unusable(input, &e))?;
        let artifacts = self.dir("artifacts", target)?;
        process::run(self.cargo_fuzz("run").arg(target).arg(input).arg("--").args(limits(&artifacts)))
    }

    fn cargo_fuzz(&self, action: &str) -> Command {
        let mut command = process::program(self.root, self.tool);
        command.args(["fuzz", action, "--fuzz-dir", "fuzz", "--target-dir"]);
        command.arg(self.root.join("target").join("fuzz").join("build"));
        command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TERM_QUIET", "true");
        // What was freed is kept for a while, to see who still uses it; a bound on memory needs a bound on that.
        command.env("ASAN_OPTIONS", "quarantine_size_mb=16");
        command
    }

    /// Gathers what a target begins with: the recorded replies of the adapter it is named after, or of all.
    fn seeds(&self, target: &str) -> Outcome<PathBuf> {
        let seeds = self.dir("seeds", target)?;
        for old in files(&seeds)? {
            std::fs::remove_file(&old).map_err(|e| unusable(&old, &e))?;
        }
        for krate in files(&self.root.join("crates"))? {
            let name = krate.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_its_own = family(target) == target || name.ends_with(&format!("-{}", family(target)));
            let recorded = krate.join("tests").join("recorded");
            if !is_its_own || !recorded.is_dir() {
                continue;
            }
            for file in files(&recorded)? {
                let Some(from) = file.file_name().and_then(|n| n.to_str()).filter(|_| file.is_file()) else {
                    continue;
                };
                if file.metadata().is_ok_and(|data| data.len() <= MAX_LEN) {
                    let to = seeds.join(format!("{name}-{from}"));
                    std::fs::copy(&file, &to).map_err(|e| unusable(&to, &e))?;
                }
            }
        }
        Ok(seeds)
    }
}

/// The protocol a target is about: what stands before the first `_`.
fn family(target: &str) -> &str {
    target.split('_').next().unwrap_or(target)
}

fn limits(artifacts: &Path) -> [String; 4] {
    [
        format!("-max_len={MAX_LEN}"),
        "-rss_limit_mb=512".to_owned(),
        "-timeout=10".to_owned(),
        format!("-artifact_prefix={}/", artifacts.display()),
    ]
}

fn choose(all: BTreeSet<String>, names: &[String]) -> Outcome<BTreeSet<String>> {
    if let Some(unknown) = names.iter().find(|name| !all.contains(*name)) {
        let known: Vec<&str> = all.iter().map(String::as_str).collect();
        return Err(Failure::Usage(format!(
            "there is no fuzz target `{unknown}`; there are: {}",
            known.join(", ")
        )));
    }
    Ok(if names.is_empty() { all } else { names.iter().cloned().collect() })
}

/// One of libFuzzer's closing figures.
fn stat<'s>(said: &'s str, name: &str) -> &'s str {
    let line =
        |line: &'s str| line.strip_prefix("stat::")?.strip_prefix(name)?.strip_prefix(':').map(str::trim);
    said.lines().find_map(line).unwrap_or("?")
}

/// What a reader needs to see it again.
fn broken(target: &str, said: &str, found: &[PathBuf], log: &Path, root: &Path) -> String {
    let panicked = said.lines().skip_while(|line| !line.contains("panicked at")).take(6);
    let error = said.lines().filter(|line| line.contains("ERROR: "));
    let mut text: String = panicked.chain(error).map(|line| format!("    {line}\n")).collect();
    let short = |path: &Path| path.strip_prefix(root).unwrap_or(path).display().to_string();
    for input in found {
        text.push_str(&format!("    see it again: cargo xtask fuzz {target} --input {}\n", short(input)));
    }
    text.push_str(&format!("    everything it said: {}", short(log)));
    text
}

/// What lies in a directory, in order.
fn files(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| unusable(dir, &e))?;
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(|e| unusable(dir, &e))?;
    paths.sort();
    Ok(paths)
}

fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn an_unknown_target_is_answered_with_the_known_ones() {
        let all = names(&["events", "openai_stream"]);
        assert_eq!(choose(all.clone(), &[]).unwrap(), all);
        assert_eq!(choose(all.clone(), &["events".to_owned()]).unwrap(), names(&["events"]));
        let error = choose(all, &["event".to_owned()]).unwrap_err();
        assert!(
            matches!(&error, Failure::Usage(why) if why.contains("`event`") && why.contains("openai_stream"))
        );
    }

    #[test]
    fn every_target_is_declared_and_has_a_dictionary() {
        let root = crate::workspace_root();
        let manifest = std::fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap();
        let targets = targets(&root).unwrap();
        assert!(targets.contains("events"), "{targets:?}");
        for target in targets {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
            let dictionary = format!("fuzz/dictionaries/{}.dict", family(&target));
            assert!(root.join(&dictionary).is_file(), "{dictionary}");
        }
    }

    #[test]
    fn what_broke_is_told_with_the_way_to_see_it_again() {
        let said = "x\nthread 'a' panicked at f.rs:1:\nbyte by byte\n==7== ERROR: libFuzzer: deadly signal\n";
        let root = Path::new("/r");
        let found = [PathBuf::from("/r/target/fuzz/artifacts/events/crash-1")];
        let text = broken("events", said, &found, Path::new("/r/target/fuzz/logs/events.log"), root);
        for part in [
            "byte by byte",
            "deadly signal",
            "cargo xtask fuzz events --input target/fuzz/artifacts/events/crash-1",
            "target/fuzz/logs/events.log",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn figures_are_found() {
        let said = "Done 5 runs\nstat::number_of_executed_units: 129654\nstat::peak_rss_mb:   92\n";
        assert_eq!((stat(said, "number_of_executed_units"), stat(said, "peak_rss_mb")), ("129654", "92"));
        assert_eq!(stat(said, "other"), "?");
    }
}
