//! Building a schema: its role, its tables, and the row-level security of each.

use loomflow_core::{Error, ErrorKind, Result};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::check::{POLICY, stored_version, unbound};
use super::component::{Component, Table};
use super::pool::connect_as_owner;
use super::settings::PgSettings;
use super::{SERVER, failed};
use crate::error::Refused;
use crate::{Migration, pending, store_error};

/// The advisory lock of migrations: one at a time in a database.
const LOCK: i64 = 0x6c6f_6f6d_666c_6f77;
/// How often the role is tried to be made: another database of the same server may be making it, too.
const ROLE_TRIES: usize = 10;

/// Brings the schema of `component` up to date, as the user of the connection string, who will own the tables.
///
/// Each change and its version number are committed together, and one process does it at a time; one that dies is
/// continued by the next. Row-level security that was found lifted is put back.
///
/// # Errors
///
/// [`ErrorKind::Config`] when the schema is newer than this program, which is left untouched, when the user lacks a
/// privilege, or when an extension is not installed on the server.
pub async fn migrate(settings: &PgSettings, component: &Component) -> Result<()> {
    let mut conn = connect_as_owner(settings, component).await?;
    let stored = stored_version(&mut conn, settings, component).await?;
    pending(component.migrations, stored, component.name)?;
    run(&mut conn, "SET lock_timeout TO '60s'").await?;
    make_role(&mut conn, &settings.role).await?;
    step(&mut conn, &foundations(settings, component)).await.map_err(explain_extension)?;
    // The extension may have come just now, into a schema that was not known.
    let mut conn = connect_as_owner(settings, component).await?;
    run(&mut conn, "SET lock_timeout TO '60s'").await?;
    for migration in pending(component.migrations, stored, component.name)? {
        apply(&mut conn, settings, component, migration).await?;
    }
    if unbound(&mut conn, settings, component).await?.iter().any(Result::is_err) {
        step(&mut conn, &component.tables.iter().map(|t| secured(t, &settings.role)).collect::<String>())
            .await?;
    }
    conn.close().await.map_err(failed("migrate"))
}

/// Applies one migration, unless somebody else did meanwhile.
async fn apply(
    conn: &mut PgConnection,
    settings: &PgSettings,
    component: &Component,
    migration: &Migration,
) -> Result<()> {
    run(conn, &format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK})")).await?;
    let stored = stored_version(conn, settings, component).await?;
    pending(component.migrations, stored, component.name)?;
    if stored >= migration.version {
        return run(conn, "ROLLBACK").await;
    }
    run(conn, migration.sql).await?;
    for table in component.tables {
        let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(format!("\"{}\".\"{}\"", settings.schema, table.name))
            .fetch_one(&mut *conn)
            .await
            .map_err(failed("migrate"))?;
        if exists {
            run(conn, &secured(table, &settings.role)).await?;
        }
    }
    let version = format!(
        "INSERT INTO schema_versions (component, version) VALUES ('{}', {}) \
         ON CONFLICT (component) DO UPDATE SET version = excluded.version; COMMIT",
        component.name, migration.version
    );
    run(conn, &version).await
}

/// The schema, the table of versions and the extensions: made if they are missing.
fn foundations(settings: &PgSettings, component: &Component) -> String {
    let PgSettings { schema, role, .. } = settings;
    let mut sql = format!(
        "CREATE SCHEMA IF NOT EXISTS \"{schema}\";
         CREATE TABLE IF NOT EXISTS \"{schema}\".schema_versions (
           component text PRIMARY KEY, version integer NOT NULL CHECK (version > 0));
         GRANT USAGE ON SCHEMA \"{schema}\" TO \"{role}\";
         GRANT SELECT ON \"{schema}\".schema_versions TO \"{role}\";"
    );
    for extension in component.extensions {
        sql += &format!("CREATE EXTENSION IF NOT EXISTS \"{extension}\" SCHEMA \"{schema}\";");
    }
    sql
}

/// Puts a table under row-level security, and gives the role what it needs and nothing more.
///
/// A transaction that names no partition sees nothing: the setting is then absent or empty, and equal to no partition.
fn secured(table: &Table, role: &str) -> String {
    let Table { name, privileges, own, policies } = table;
    let opened: String = policies.iter().map(|policy| policy.create(name)).collect();
    format!(
        "ALTER TABLE \"{name}\" ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         DROP POLICY IF EXISTS {POLICY} ON \"{name}\";
         CREATE POLICY {POLICY} ON \"{name}\" USING ({own}) WITH CHECK ({own}); {opened}
         REVOKE ALL ON \"{name}\" FROM PUBLIC, \"{role}\";
         GRANT {privileges} ON \"{name}\" TO \"{role}\";"
    )
}

/// Makes the role if it is missing, and lets the current user act as it. Roles are shared by all databases of a server,
/// and no lock is: whoever loses a race tries again.
async fn make_role(conn: &mut PgConnection, role: &str) -> Result<()> {
    let sql = format!(
        "DO $$ BEGIN
           IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
             CREATE ROLE \"{role}\" NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE;
           END IF;
           IF NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid
             JOIN pg_roles u ON u.oid = m.member WHERE r.rolname = '{role}' AND u.rolname = current_user
             AND coalesce((to_jsonb(m) ->> 'set_option')::boolean, true)) THEN
             EXECUTE format('GRANT \"{role}\" TO %I', current_user);
           END IF;
         END $$"
    );
    for tried in 1.. {
        let Err(error) = conn.execute(sqlx::raw_sql(AssertSqlSafe(sql.clone()))).await else { break };
        let code = error.as_database_error().and_then(|e| e.code());
        // Duplicate object, unique violation, "tuple concurrently updated".
        let raced = matches!(code.as_deref(), Some("42710" | "23505" | "XX000"));
        if !raced || tried == ROLE_TRIES {
            return Err(explain_privilege(store_error(error, SERVER, "migrate"), role));
        }
    }
    Ok(())
}

/// Runs statements in a transaction of their own, alone in the database.
async fn step(conn: &mut PgConnection, sql: &str) -> Result<()> {
    run(conn, &format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK}); {sql} COMMIT")).await
}

async fn run(conn: &mut PgConnection, sql: &str) -> Result<()> {
    let statements = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    conn.execute(statements).await.map(drop).map_err(failed("migrate"))
}

fn explain_privilege(error: Error, role: &str) -> Error {
    if error.kind() != ErrorKind::Config {
        return error;
    }
    let message = format!(
        "the connecting user may not make the role `{role}` or act as it: migrate as a user with CREATEROLE, or have an \
         administrator run CREATE ROLE \"{role}\" NOLOGIN and GRANT it to that user"
    );
    Error::new(ErrorKind::Config, message).with_operation("migrate").with_source(error)
}

fn explain_extension(error: Error) -> Error {
    use std::error::Error as _;
    let code = error.source().and_then(|e| e.downcast_ref::<Refused>()).map(|refused| &*refused.code);
    // Undefined file, or not permitted: nobody but a superuser may create an extension that is not trusted.
    let message = match code {
        Some("58P01" | "0A000") => {
            "an extension is not installed on the server of PostgreSQL: install pgvector there"
        }
        Some("42501") => {
            "the connecting user may not create the schema or an extension: grant it CREATE on the database, and have an \
             administrator run CREATE EXTENSION vector"
        }
        _ => return error,
    };
    Error::new(ErrorKind::Config, message).with_operation("migrate").with_source(error)
}
