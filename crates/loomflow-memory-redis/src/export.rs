//! Export: a list of what there is, oldest first, and then the rows, a page at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use futures_util::stream;
use loomflow_core::{ExportItem, ExportStream, MemoryBlock, Owned, Owner, Result, Timestamp, rules};

use crate::codec::{BlockRow, Row, order_time, split_place};
use crate::episodes::{read_episode, tail_id};
use crate::facts::{Held, read_rows};
use crate::tenant::{Shared, Tenant};

/// How many places of an order are read at once.
const PAGE: usize = 1_000;
/// How many rows are fetched at once.
const ROWS: usize = 32;

/// A record that is to be exported. Blocks are few and small in number, so they come along.
#[derive(Debug)]
enum Place {
    Episode(u128),
    Fact(u128),
    Block(Owner, MemoryBlock),
}

/// Everything of `owner`, oldest first: episodes, facts and blocks by when they were said, known and written.
pub(crate) async fn stream(shared: Arc<Shared>, owner: Owner) -> Result<ExportStream> {
    let places = places(&shared.tenant(&owner)).await?;
    let pages = stream::try_unfold((shared, owner, places), |(shared, owner, mut places)| async move {
        let page: Vec<Place> = places.drain(..ROWS.min(places.len())).collect();
        if page.is_empty() {
            return Ok(None);
        }
        let items = items(&shared.tenant(&owner), page).await?;
        Ok(Some((stream::iter(items.into_iter().map(Ok)), (shared, owner, places))))
    });
    Ok(Box::pin(pages.try_flatten()))
}

async fn places(tenant: &Tenant<'_>) -> Result<VecDeque<Place>> {
    let mut all: Vec<(Timestamp, u8, Place)> = Vec::new();
    let mut below: Option<Vec<u8>> = None;
    loop {
        let (_, found) = tenant.latest("export", "or", b"", below.as_deref(), PAGE).await?;
        for (member, _) in &found {
            all.push((order_time(member)?, 0, Place::Episode(tail_id(member)?)));
        }
        if found.len() < PAGE {
            break;
        }
        below = found.into_iter().next_back().map(|(member, _)| member);
    }
    all.reverse();
    let mut facts = read_rows(&tenant.scan("export", "fa", "", true).await?.entries)?;
    facts.sort_by_key(|row| (row.fact.known_from, row.fact.id));
    all.extend(facts.into_iter().map(|row| (row.fact.known_from, 1, Place::Fact(row.fact.id.as_u128()))));
    for (owner, block) in blocks(tenant, "export").await? {
        all.push((block.updated_at, 2, Place::Block(owner, block)));
    }
    all.sort_by_key(|(at, kind, _)| (*at, *kind));
    Ok(all.into_iter().map(|(_, _, place)| place).collect())
}

/// All blocks, by place, then by name, and whose they are.
pub(crate) async fn blocks(
    tenant: &Tenant<'_>,
    operation: &'static str,
) -> Result<Vec<(Owner, MemoryBlock)>> {
    let mut last = None;
    let mut out = Vec::new();
    for (name, bytes) in tenant.scan(operation, "bl", "", true).await?.entries {
        let (order, row) = split_place(&bytes)?;
        let row = Row::<BlockRow>::read(row)?;
        let owner = row.owner(last.as_ref())?;
        last = Some(owner.clone());
        let name = String::from_utf8(name).map_err(|_| crate::codec::unreadable())?;
        out.push((owner, MemoryBlock::new(name, row.v.content, order, row.v.at)));
    }
    out.sort_by(|(_, a), (_, b)| (a.order, &a.name).cmp(&(b.order, &b.name)));
    Ok(out)
}

/// The records of a page. What was erased meanwhile is left out.
async fn items(tenant: &Tenant<'_>, page: Vec<Place>) -> Result<Vec<Owned<ExportItem>>> {
    let ids = |wanted: fn(&Place) -> Option<u128>| page.iter().filter_map(wanted).collect::<Vec<_>>();
    let episodes = ids(|p| if let Place::Episode(id) = p { Some(*id) } else { None });
    let facts = ids(|p| if let Place::Fact(id) = p { Some(*id) } else { None });
    let mut episodes = tenant.fetch("export", "ep", "ev", &episodes).await?.into_iter();
    let mut facts = tenant.fetch("export", "fa", "fv", &facts).await?.into_iter();
    let mut last = None;
    let mut out = Vec::with_capacity(page.len());
    for place in page {
        let (owner, item) = match place {
            Place::Episode(_) => {
                let Some((row, fetched)) = episodes.next().and_then(|f| Some((f.row?, (f.id, f.vector))))
                else {
                    continue;
                };
                let (owner, mut episode) = read_episode(&row, fetched.0, &mut last)?;
                episode.embedding = fetched.1;
                (owner, rules::export_episode(&episode)?)
            }
            Place::Fact(_) => {
                let Some((row, vector)) = facts.next().and_then(|f| Some((f.row?, f.vector))) else {
                    continue;
                };
                let held = Held::read(&row, &mut last)?;
                (held.owner, rules::export_fact(&held.fact, vector.as_ref())?)
            }
            Place::Block(owner, block) => (owner, rules::export_block(&block)?),
        };
        out.push(Owned::new(owner, item));
    }
    Ok(out)
}
