//! Erasure: the name is blanked where it lies and the epoch is raised in the same transaction; the counters stay.

use loomflow_core::{Erase, Erased, Result};
use loomflow_support_sql::sqlite::failed;
use sqlx::sqlite::SqliteConnection;

use crate::schema::{Author, Columns as _, STORE};

const OPERATION: &str = "forget";

const USER: &str = "SELECT u.name, n.namespace, n.user_id, \
     EXISTS (SELECT 1 FROM ledger_counters AS c WHERE c.partition = ?1) AS kept FROM (SELECT 1) \
     LEFT JOIN ledger_users AS u ON u.partition = ?1 LEFT JOIN ledger_names AS n ON n.name = u.name";
pub(crate) const BLANK: &str = "UPDATE ledger_names SET namespace = '', user_id = NULL WHERE name = ?1";
const RAISE: &str = "INSERT INTO ledger_users (partition, epoch, name) VALUES (?1, ?2, NULL) \
                     ON CONFLICT (partition) DO UPDATE SET epoch = max(epoch, excluded.epoch), name = NULL";

/// Takes the name off the author's counters. The numbers stay until their window ends, or an erasure would be a way to a
/// fresh quota.
pub(crate) async fn forget(conn: &mut SqliteConnection, author: &Author, what: &Erase) -> Result<Erased> {
    let fail = failed(OPERATION);
    let row = sqlx::query(USER).bind(&author.partition[..]).fetch_one(&mut *conn).await.map_err(fail)?;
    author.check(row.owner()?.as_ref(), OPERATION)?;
    let (name, kept) = (row.cell::<Option<i64>>("name")?, row.cell::<bool>("kept")?);
    let mut names = 0;
    if what.is_everything() {
        if let Some(name) = name {
            sqlx::query(BLANK).bind(name).execute(&mut *conn).await.map_err(fail)?;
            names = 1;
        }
        let raise = sqlx::query(RAISE).bind(&author.partition[..]).bind(author.epoch.get().cast_signed());
        raise.execute(&mut *conn).await.map_err(fail)?;
    }
    let line = Erased::new(STORE).with_count("counter_name", names);
    Ok(if !kept {
        line
    } else if what.is_everything() {
        line.with_retained(
            "the usage counters and what calls in flight hold, without the name and under a hash, until their window ends: \
             erasing them would give a fresh quota",
        )
    } else {
        line.with_retained("the usage counters: they belong to no session and hold no content")
    })
}
