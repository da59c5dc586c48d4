//! Qdrant's storage engine behind Qdrant's gRPC service, for tests.
//!
//! The engine (segments, filters, payload indexes, conditional updates) is Qdrant's own, as a library; the messages are
//! those of the official client. What is in between is this program: it turns a request into the engine's own form and
//! judges nothing by itself. One process, one shard, one update of a collection at a time; what was acknowledged is found
//! again after a restart, and after a SIGKILL.
//!
//! Not Qdrant's, and so not checked by a test against it: clusters and their consistency, strict mode, API keys and TLS,
//! rate limits, the background optimizer, and the wording of the server's own validation errors.

mod collections;
mod engine;
mod points;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use qdrant_client::qdrant::collections_server::CollectionsServer;
use qdrant_client::qdrant::points_server::PointsServer;
use qdrant_client::qdrant::qdrant_server::{Qdrant, QdrantServer};
use qdrant_client::qdrant::{HealthCheckReply, HealthCheckRequest};
use tokio::signal::unix::{SignalKind, signal};
use tonic::{Request, Response, Status};

use crate::engine::Engine;

/// The largest message, as a Qdrant server has it by default.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (dir, listen) = arguments()?;
    let engine = Arc::new(Engine::open(&dir)?);
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tonic::transport::Server::builder()
        .add_service(QdrantServer::new(Health))
        .add_service(CollectionsServer::new(collections::Service(engine.clone())))
        .add_service(
            PointsServer::new(points::Service(engine.clone())).max_decoding_message_size(MAX_MESSAGE),
        )
        .serve_with_shutdown(listen, async {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await?;
    Ok(())
}

fn arguments() -> Result<(PathBuf, SocketAddr), String> {
    const USAGE: &str = "usage: loomflow-qdrant-service --dir <DIR> --listen 127.0.0.1:<PORT>";
    let (mut dir, mut listen) = (None, None);
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value = given.next().ok_or(USAGE)?;
        match name.as_str() {
            "--dir" => dir = Some(PathBuf::from(value)),
            "--listen" => listen = Some(value.parse().map_err(|e| format!("{value}: {e}"))?),
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok((dir.ok_or(USAGE)?, listen.ok_or(USAGE)?))
}

#[derive(Debug)]
struct Health;

#[tonic::async_trait]
impl Qdrant for Health {
    async fn health_check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckReply>, Status> {
        // The client compares its own minor version with this one.
        Ok(Response::new(HealthCheckReply {
            title: "qdrant - engine in a test service".to_owned(),
            version: "1.18.0".to_owned(),
            commit: None,
        }))
    }
}
