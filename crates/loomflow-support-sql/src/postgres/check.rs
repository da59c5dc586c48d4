//! What is looked at before a database is used: its version, and that row-level security binds the application's role.

use loomflow_core::{Error, ErrorKind, Result};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use super::component::{Component, Policy};
use super::failed;
use super::settings::PgSettings;
use crate::pending;

/// Everybody but the application's role sees a table without this policy as the table's owner allows.
pub(super) const POLICY: &str = "loomflow_partition";

/// Which rows the first of them shows and lets be written, where a table says nothing else, as the server says it back:
/// not a word more may stand there.
pub(super) const OWN: &str =
    "(partition = decode(current_setting('loomflow.partition'::text, true), 'hex'::text))";

/// The schema, and those where the extensions are, as the list of a `SET search_path`. The temporary schema is last, so
/// that nothing in it is taken for one of ours.
pub(super) async fn search_path(
    conn: &mut PgConnection,
    settings: &PgSettings,
    component: &Component,
) -> Result<String> {
    let schemas: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
         WHERE e.extname = ANY($1) AND n.nspname <> $2",
    )
    .bind(component.extensions)
    .bind(&settings.schema)
    .fetch_all(conn)
    .await
    .map_err(failed("connect"))?;
    let mut path = format!("\"{}\"", settings.schema);
    for schema in schemas {
        path = format!("{path}, {schema}");
    }
    Ok(path + ", pg_temp")
}

/// Whether migrations have to be run before the database can be used. Leaves the connection as it was.
pub(super) async fn is_behind(
    conn: &mut PgConnection,
    settings: &PgSettings,
    component: &Component,
    may_migrate: bool,
) -> Result<bool> {
    let role = role_of(conn, settings).await?;
    let stored = match role {
        Role::CanBeTaken => {
            set_role(conn, &settings.role).await?;
            let stored = stored_version(conn, settings, component).await;
            conn.execute("RESET ROLE").await.map_err(failed("connect"))?;
            stored?
        }
        Role::Missing | Role::Refused if may_migrate => stored_version(conn, settings, component).await?,
        Role::Missing => 0,
        Role::Refused => return Err(refused(settings)),
    };
    let lacks = pending(component.migrations, stored, component.name)?;
    if lacks.is_empty() {
        return Ok(!matches!(role, Role::CanBeTaken));
    }
    if may_migrate {
        return Ok(true);
    }
    let message = format!(
        "the schema of {} in the schema `{}` is version {stored}, and this program needs version {}: run the migration \
         with a connection string of the tables' owner, or allow it with `migrate`",
        component.name,
        settings.schema,
        component.version()
    );
    Err(config(message))
}

#[derive(Clone, Copy)]
enum Role {
    CanBeTaken,
    Refused,
    Missing,
}

async fn role_of(conn: &mut PgConnection, settings: &PgSettings) -> Result<Role> {
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)")
        .bind(&settings.role)
        .fetch_one(&mut *conn)
        .await
        .map_err(failed("connect"))?;
    if !exists {
        return Ok(Role::Missing);
    }
    match set_role(conn, &settings.role).await {
        Ok(()) => {
            conn.execute("RESET ROLE").await.map_err(failed("connect"))?;
            Ok(Role::CanBeTaken)
        }
        Err(e) if e.kind() == ErrorKind::Config => Ok(Role::Refused),
        Err(e) => Err(e),
    }
}

async fn set_role(conn: &mut PgConnection, role: &str) -> Result<()> {
    let sql = AssertSqlSafe(format!("SET ROLE \"{role}\""));
    conn.execute(sqlx::raw_sql(sql)).await.map(drop).map_err(failed("connect"))
}

/// The version of a component's schema; 0 where there is none.
pub(super) async fn stored_version(
    conn: &mut PgConnection,
    settings: &PgSettings,
    component: &Component,
) -> Result<u32> {
    let exists: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = $1 AND c.relname = 'schema_versions')",
    )
    .bind(&settings.schema)
    .fetch_one(&mut *conn)
    .await
    .map_err(failed("connect"))?;
    if !exists {
        return Ok(0);
    }
    let sql = format!("SELECT version FROM \"{}\".schema_versions WHERE component = $1", settings.schema);
    let stored: Option<i32> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(component.name)
        .fetch_optional(conn)
        .await
        .map_err(failed("connect"))?;
    Ok(stored.map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)))
}

/// Refuses a connection that row-level security does not bind.
pub(super) async fn is_bound(
    conn: &mut PgConnection,
    settings: &PgSettings,
    component: &Component,
) -> Result<()> {
    let role = sqlx::query(
        "SELECT current_user::text AS name, rolsuper, rolbypassrls, current_setting('server_encoding') AS encoding \
         FROM pg_roles WHERE rolname = current_user",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(failed("connect"))?;
    let read = || -> sqlx::Result<(String, bool, bool, String)> {
        Ok((
            role.try_get("name")?,
            role.try_get("rolsuper")?,
            role.try_get("rolbypassrls")?,
            role.try_get("encoding")?,
        ))
    };
    let (name, superuser, bypasses, encoding) = read().map_err(failed("connect"))?;
    if name != settings.role {
        return Err(refused(settings));
    }
    if superuser || bypasses {
        let message = format!(
            "the role `{name}` is not bound by row-level security: run ALTER ROLE \"{name}\" NOSUPERUSER NOBYPASSRLS, or \
             configure another `app_role`"
        );
        return Err(config(message));
    }
    if encoding != "UTF8" {
        return Err(config(format!(
            "the database stores text as {encoding}; create one with ENCODING 'UTF8'"
        )));
    }
    for table in unbound(conn, settings, component).await? {
        table?;
    }
    Ok(())
}

/// For each table whether row-level security binds the current role in it, and if not, why.
pub(super) async fn unbound(
    conn: &mut PgConnection,
    settings: &PgSettings,
    component: &Component,
) -> Result<Vec<Result<()>>> {
    let names: Vec<&str> = component.tables.iter().map(|t| t.name).collect();
    let own: Vec<&str> = component.tables.iter().map(|t| t.own).collect();
    let declared: Vec<(&str, &Policy)> =
        component.tables.iter().flat_map(|t| t.policies.iter().map(|policy| (t.name, policy))).collect();
    let rows = sqlx::query(
        "SELECT t.name, c.oid IS NOT NULL AS there, \
           coalesce(c.relrowsecurity AND c.relforcerowsecurity, false) AS forced, \
           coalesce(pg_has_role($3, c.relowner, 'MEMBER'), false) AS owns, \
           EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = $4 AND p.polcmd = '*' \
             AND p.polroles = '{0}' AND pg_get_expr(p.polqual, p.polrelid) = t.own \
             AND pg_get_expr(p.polwithcheck, p.polrelid) = pg_get_expr(p.polqual, p.polrelid)) AS guarded, \
           EXISTS (SELECT FROM pg_policy p, unnest(p.polroles) r WHERE p.polrelid = c.oid AND p.polname <> $4 \
             AND p.polpermissive AND (r = 0 OR pg_has_role($3, r, 'MEMBER')) \
             AND NOT EXISTS (SELECT FROM unnest($6::text[], $7::text[], $8::text[], $9::text[], $10::text[]) \
               d(on_table, name, letter, finds, writes) WHERE d.on_table = t.name AND d.name = p.polname \
               AND d.letter = p.polcmd::text AND d.finds IS NOT DISTINCT FROM pg_get_expr(p.polqual, p.polrelid) \
               AND d.writes IS NOT DISTINCT FROM pg_get_expr(p.polwithcheck, p.polrelid))) AS opened, \
           (SELECT count(*) FROM unnest($6::text[], $7::text[]) d(on_table, name) WHERE d.on_table = t.name \
             AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = d.name)) > 0 AS closed \
         FROM unnest($2::text[], $5::text[]) t(name, own) LEFT JOIN pg_namespace n ON n.nspname = $1 \
         LEFT JOIN pg_class c ON c.relname = t.name AND c.relnamespace = n.oid",
    )
    .bind(&settings.schema)
    .bind(names)
    .bind(&settings.role)
    .bind(POLICY)
    .bind(own)
    .bind(declared.iter().map(|(table, _)| *table).collect::<Vec<_>>())
    .bind(declared.iter().map(|(_, policy)| policy.name).collect::<Vec<_>>())
    .bind(declared.iter().map(|(_, policy)| policy.letter()).collect::<Vec<_>>())
    .bind(declared.iter().map(|(_, policy)| policy.finds).collect::<Vec<_>>())
    .bind(declared.iter().map(|(_, policy)| policy.writes).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .map_err(failed("connect"))?;
    rows.iter()
        .map(|row| {
            let is = |column| row.try_get::<bool, _>(column).map_err(failed("connect"));
            let table: &str = row.try_get("name").map_err(failed("connect"))?;
            let table = format!("\"{}\".\"{table}\"", settings.schema);
            let role = &settings.role;
            let why = if !is("there")? {
                format!("the table {table} is missing: restore it, or run the migration in a fresh schema")
            } else if is("owns")? {
                format!(
                    "the role `{role}` owns the table {table} or is a member of its owner, and could lift row-level \
                     security: run ALTER TABLE {table} OWNER TO another role, or REVOKE that membership"
                )
            } else if !is("forced")? {
                format!(
                    "row-level security is not enabled and forced on {table}: run the migration again as its owner, or \
                     ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
                )
            } else if !is("guarded")? {
                format!(
                    "the policy `{POLICY}` of {table} is missing or was changed: run the migration again as its owner"
                )
            } else if is("opened")? {
                format!(
                    "{table} has another policy that shows rows to `{role}`, or one that was changed: drop it, and run the \
                     migration again as its owner"
                )
            } else if is("closed")? {
                format!("a policy of {table} is missing: run the migration again as its owner")
            } else {
                return Ok(Ok(()));
            };
            Ok(Err(config(why)))
        })
        .collect()
}

fn refused(settings: &PgSettings) -> Error {
    let role = &settings.role;
    config(format!(
        "the connecting user cannot act as the role `{role}`: as an administrator, run GRANT \"{role}\" TO that user"
    ))
}

fn config(message: String) -> Error {
    Error::new(ErrorKind::Config, message).with_operation("connect")
}
