//! `cargo xtask prices`: makes the embedded price table anew from a published list, or checks the one that is there.

#[path = "../../crates/loomflow-support-model/src/prices/decimal.rs"]
mod decimal;
mod file;
mod select;
mod wheel;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use self::file::{PriceFile, SCHEMA, is_date};
use self::select::{Listed, Selection, select};
use self::wheel::Pin;
use crate::{Failure, Outcome};

/// The table in the tree.
const TABLE: &str = "crates/loomflow-support-model/prices.json";

/// The release the table is made of. Raise all three together: the version, the day it was built (in the wheel's SBOM), and the wheel's
/// SHA-256, which pip prints when it does not match.
const PIN: Pin = Pin {
    version: "1.109.1",
    date: "2026-11-12",
    sha256: "1c8b4dd671fa0cd0850aa751678704ff77e595fb1e6085b2dc3be39ee19bdaaf",
};

/// Flags of the command.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// A litellm price list that is already here. Without it, the pinned release is downloaded with pip.
    #[arg(long, value_name = "FILE", requires = "version", requires = "date")]
    from: Option<PathBuf>,
    /// The release of the list in FILE.
    #[arg(long, requires = "from")]
    version: Option<String>,
    /// The day that release was published, as YYYY-MM-DD.
    #[arg(long, requires = "from", value_name = "YYYY-MM-DD")]
    date: Option<String>,
    /// Only checks the committed table; writes and downloads nothing.
    #[arg(long, conflicts_with = "from")]
    check: bool,
}

/// Runs the command in the workspace `root`.
pub(crate) fn run(root: &Path, flags: Flags) -> Outcome {
    let table = root.join(TABLE);
    if flags.check {
        return check(&table);
    }
    let (list, version, date) = match (flags.from, flags.version, flags.date) {
        (Some(list), Some(version), Some(date)) => (list, version, date),
        _ => (PIN.download(root)?, PIN.version.to_owned(), PIN.date.to_owned()),
    };
    if !is_date(&date) {
        return Err(Failure::Usage(format!("--date {date} is not a date such as 2026-01-31")));
    }
    let (text, selection) = generate(&read(&list)?, &version, &date)
        .map_err(|why| Failure::Failed(format!("{}: {why}", list.display())))?;
    std::fs::write(&table, text)
        .map_err(|e| Failure::Failed(format!("{} cannot be written: {e}", table.display())))?;
    println!("{}", summary(&selection));
    println!("{TABLE}: read the diff, and keep prices.LICENSE beside it true (release {version} of {date})");
    Ok(())
}

fn check(table: &Path) -> Outcome {
    let file = PriceFile::check(&read(table)?).map_err(|why| {
        Failure::Failed(format!("{}: {why}; make it anew with `cargo xtask prices`", table.display()))
    })?;
    println!("{TABLE}: {} models as of {}, from {}", file.models.len(), file.as_of, file.source);
    Ok(())
}

/// The table's text. The same list makes the same text, byte for byte.
fn generate(list: &str, version: &str, date: &str) -> Result<(String, Selection), String> {
    let list: BTreeMap<String, Listed> =
        serde_json::from_str(list).map_err(|e| format!("not a litellm price list: {e}"))?;
    let selection = select(&list);
    let file = PriceFile {
        schema: SCHEMA,
        as_of: date.to_owned(),
        source: format!("litellm {version}, model_prices_and_context_window_backup.json"),
        models: selection.entries.clone(),
    };
    let text = file.render().map_err(|e| format!("the table cannot be written: {e}"))?;
    PriceFile::check(&text).map_err(|why| format!("the table made of it would be wrong: {why}"))?;
    Ok((text, selection))
}

fn summary(selection: &Selection) -> String {
    let mut text = format!(
        "{} models; {} rates were rounded up to a whole pico-dollar; {} service tiers are half there and left out; \
         models left out, by reason:",
        selection.entries.len(),
        selection.rounded,
        selection.half_tiers
    );
    for (why, models) in &selection.dropped {
        text.push_str(&format!("\n  {why:?} ({}): {}", models.len(), models.join(", ")));
    }
    text
}

fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path)
        .map_err(|e| Failure::Failed(format!("{} cannot be read: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{
        "z": {"litellm_provider":"openai","mode":"chat","input_cost_per_token":1e-06,"output_cost_per_token":2e-06},
        "a": {"litellm_provider":"openai","mode":"chat","input_cost_per_token":1e-06,"output_cost_per_token":2e-06},
        "free": {"litellm_provider":"openai","mode":"chat","input_cost_per_token":0,"output_cost_per_token":0}
    }"#;

    #[test]
    fn the_same_list_makes_the_same_table() {
        let (text, selection) = generate(LIST, "1.2.3", "2026-01-31").unwrap();
        assert_eq!(generate(LIST, "1.2.3", "2026-01-31").unwrap().0, text);
        let names: Vec<String> =
            PriceFile::check(&text).unwrap().models.into_iter().map(|m| m.model).collect();
        assert_eq!(names, ["a", "z"]);
        assert!(text.contains("litellm 1.2.3") && text.contains("2026-01-31"), "{text}");
        assert!(summary(&selection).contains("Free (1): openai/free"), "{}", summary(&selection));
    }

    #[test]
    fn a_list_that_is_none_is_refused() {
        for list in ["", "[]", "{}", r#"{"a":1}"#] {
            assert!(generate(list, "1", "2026-01-31").is_err(), "{list}");
        }
    }

    #[test]
    fn the_committed_table_is_as_the_command_writes_it() {
        let table = crate::workspace_root().join(TABLE);
        let file = PriceFile::check(&std::fs::read_to_string(table).unwrap()).unwrap();
        assert_eq!(file.as_of, PIN.date, "the table is of the pinned release");
        assert!(file.source.contains(PIN.version), "{}", file.source);
    }
}
