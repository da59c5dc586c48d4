//! `pgbench` with as many clients as there are writers, inserting rows like those that were just written into a table like
//! the store's, with its indexes, one row a transaction.

use std::path::PathBuf;
use std::process::Stdio;

use loomflow_core::Result;
use tokio::process::Command;
use url::Url;

use super::failed;
use crate::stores::{Args, Floor};

const SETUP: &str = "DROP TABLE IF EXISTS loomflow_floor, loomflow_floor_sample;
CREATE TABLE loomflow_floor (LIKE memory_episodes INCLUDING ALL);
CREATE TABLE loomflow_floor_sample AS SELECT * FROM memory_episodes ORDER BY said_at DESC LIMIT 1;
";
const INSERT: &str = "\\set p random(0, 127)
INSERT INTO loomflow_floor SELECT sha256((:p)::text::bytea), decode(md5(random()::text || clock_timestamp()::text), 'hex'), \
namespace, user_id, session, said_at, message_count, term_count, terms, messages, embedding FROM loomflow_floor_sample;
";
const TEARDOWN: &str = "DROP TABLE IF EXISTS loomflow_floor, loomflow_floor_sample;
";

pub(super) async fn measure(args: &Args) -> Result<Floor> {
    let dir = std::env::temp_dir().join(format!("loomflow-floor-{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&dir).map_err(failed)?;
    let outcome = on(args, dir.clone()).await;
    std::fs::remove_dir_all(&dir).map_err(failed)?;
    outcome
}

async fn on(args: &Args, dir: PathBuf) -> Result<Floor> {
    let file = dir.join("script.sql");
    let script = async |sql: &str, flags: &[&str]| -> Result<String> {
        std::fs::write(&file, sql).map_err(failed)?;
        let mut pgbench = Command::new(&args.pgbench);
        connection(&mut pgbench, &args.memory)?;
        pgbench.args(["-n", "-f"]).arg(&file).args(flags).stdin(Stdio::null());
        let output =
            pgbench.output().await.map_err(|e| failed(format!("{}: {e}", args.pgbench.display())))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(failed(String::from_utf8_lossy(&output.stderr)))
    };
    script(SETUP, &["-t", "1"]).await?;
    let (clients, seconds) = (args.writers.to_string(), args.seconds.to_string());
    let said = script(INSERT, &["-M", "prepared", "-c", &clients, "-j", "2", "-T", &seconds]).await;
    script(TEARDOWN, &["-t", "1"]).await?;
    let said = said?;
    let per_s = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    let per_s = per_s.ok_or_else(|| failed("pgbench said no tps"))?;
    Ok(Floor { how: format!("pgbench, {clients} clients, one row a transaction"), per_s })
}

/// Through the environment: arguments can be read by everybody on the machine.
fn connection(pgbench: &mut Command, url: &str) -> Result<()> {
    let url = Url::parse(url).map_err(|_| failed("the URL cannot be read"))?;
    let parts = [
        ("PGHOST", url.host_str().unwrap_or_default().to_owned()),
        ("PGPORT", url.port().map_or_else(String::new, |port| port.to_string())),
        ("PGUSER", url.username().to_owned()),
        ("PGPASSWORD", url.password().unwrap_or_default().to_owned()),
        // Where the store's tables are, unless it was told otherwise.
        ("PGOPTIONS", "-c search_path=loomflow,public".to_owned()),
        ("PGDATABASE", url.path().trim_start_matches('/').to_owned()),
    ];
    for (name, value) in parts.into_iter().filter(|(_, value)| !value.is_empty()) {
        pgbench.env(name, value);
    }
    Ok(())
}
