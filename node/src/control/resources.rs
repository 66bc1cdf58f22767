//! Declared state: apply, delete, get, list, watch.

use super::deadline::patience;
use super::{ControlContext, meaning, status};
use futures_util::{Stream, StreamExt as _, stream};
use prost::Message as _;
use quorate_proto::store::v1::{Command, DeleteResource, PutResource, command::Op};
use quorate_proto::v1::{
    self, ApplyRequest, ApplyResponse, DeleteRequest, DeleteResponse, GetRequest, GetResponse,
    Kind, ListRequest, ListResponse, WatchRequest, WatchResponse, resources_server::Resources,
};
use quorate_raft::state::{ListFilter, MAX_PAGE_SIZE, Page, Reply, ResourceExt as _, validate};
use quorate_raft::watch::{ResumeToken, WatchFilter, WatchStream};
use quorate_raft::{Consistency, ReadStamp};
use std::pin::Pin;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Bytes of resources in a page, unless a single one has more. Below the 4 MiB that gRPC clients read by default.
const PAGE_BYTES: usize = 3 << 20;
/// Quiet time after which a watch gets a bookmark.
const BOOKMARK: Duration = Duration::from_secs(5);

pub struct Service {
    context: ControlContext,
}

impl Service {
    pub fn new(context: ControlContext) -> Self {
        Self { context }
    }

    /// What the command would be answered now.
    async fn check(
        &self,
        command: &Command,
        name: &str,
        patience: Duration,
    ) -> Result<Response<ApplyResponse>, Status> {
        let (view, _) = self
            .context
            .read(Consistency::Linearizable, patience)
            .await?;
        let command = Command {
            origin_node_id: self.context.cluster.node_id(),
            time_unix_ms: unix_ms(),
            op: command.op.clone(),
            idempotency_key: String::new(),
        };
        match view.dry_run(&command) {
            Reply::Applied {
                resource, outcome, ..
            } => {
                let resource = Some(v1::Resource::clone(&resource));
                Ok(Response::new(ApplyResponse {
                    resource,
                    outcome: outcome.into(),
                    warnings: Vec::new(),
                }))
            }
            Reply::Rejected(rejection) => Err(status::rejected(rejection, kind_of(&command), name)),
        }
    }
}

fn unix_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn kind_of(command: &Command) -> Kind {
    match &command.op {
        Some(Op::Put(put)) => put
            .resource
            .as_ref()
            .map_or(Kind::Unspecified, |resource| resource.kind()),
        _ => Kind::Unspecified,
    }
}

/// A kind that this build knows.
fn known_kind(number: i32) -> Result<Kind, Status> {
    match Kind::try_from(number) {
        Ok(Kind::Unspecified) => Err(status::invalid("kind", "must be set")),
        Ok(kind) => Ok(kind),
        Err(_) => Err(status::invalid(
            "kind",
            format!("{number} is not a kind that this node knows"),
        )),
    }
}

pub fn consistency(number: i32) -> Result<Consistency, Status> {
    match v1::Consistency::try_from(number) {
        Ok(v1::Consistency::Unspecified | v1::Consistency::Linearizable) => {
            Ok(Consistency::Linearizable)
        }
        Ok(v1::Consistency::Stale) => Ok(Consistency::Stale),
        Err(_) => Err(status::invalid(
            "consistency",
            format!("{number} is not a consistency that this node knows"),
        )),
    }
}

fn stamp(stamp: ReadStamp) -> v1::ReadStamp {
    v1::ReadStamp {
        applied_index: stamp.applied_index,
        age: stamp.age.and_then(|age| age.try_into().ok()),
        node_id: stamp.node_id,
    }
}

#[tonic::async_trait]
impl Resources for Service {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let patience = patience(request.metadata());
        let ApplyRequest {
            idempotency_key,
            expected_version,
            resource,
            validate_only,
        } = request.into_inner();
        validate::idempotency_key(&idempotency_key).map_err(status::field)?;
        let resource = resource.ok_or_else(|| status::invalid("resource", "must be set"))?;
        if resource.kind() == Kind::Node {
            return Err(status::invalid(
                "spec.node",
                "nodes are written by the cluster itself when they join",
            ));
        }
        let resource = validate::canonical(&resource).map_err(status::field)?;
        let warnings = meaning::check(&resource)?;
        let (kind, name) = (resource.kind(), resource.name().to_owned());
        let op = Op::Put(PutResource {
            resource: Some(resource),
            expected_version,
        });
        let command = Command {
            idempotency_key,
            op: Some(op),
            ..Command::default()
        };
        if validate_only {
            let mut checked = self.check(&command, &name, patience).await?;
            checked.get_mut().warnings = warnings;
            return Ok(checked);
        }
        let applied = self
            .context
            .propose(command, patience)
            .await
            .map_err(|error| status::proposed(error, kind, &name))?;
        tracing::debug!(
            kind = kind.as_str_name(),
            name,
            outcome = applied.outcome.as_str_name(),
            "applied"
        );
        let resource = Some(v1::Resource::clone(&applied.resource));
        Ok(Response::new(ApplyResponse {
            resource,
            outcome: applied.outcome.into(),
            warnings,
        }))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let patience = patience(request.metadata());
        let DeleteRequest {
            idempotency_key,
            expected_version,
            kind,
            name,
        } = request.into_inner();
        validate::idempotency_key(&idempotency_key).map_err(status::field)?;
        let kind = known_kind(kind)?;
        validate::name("name", &name).map_err(status::field)?;
        let op = Op::Delete(DeleteResource {
            kind: kind.into(),
            name: name.clone(),
            expected_version,
        });
        let command = Command {
            idempotency_key,
            op: Some(op),
            ..Command::default()
        };
        let applied = self
            .context
            .propose(command, patience)
            .await
            .map_err(|error| status::proposed(error, kind, &name))?;
        tracing::debug!(kind = kind.as_str_name(), name, "deleted");
        Ok(Response::new(DeleteResponse {
            resource: Some(v1::Resource::clone(&applied.resource)),
        }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let patience = patience(request.metadata());
        let request = request.into_inner();
        let kind = known_kind(request.kind)?;
        let consistency = consistency(request.consistency)?;
        let (view, read) = self.context.read(consistency, patience).await?;
        let resource = view
            .get(kind, &request.name)
            .ok_or_else(|| status::not_found(kind, &request.name))?;
        Ok(Response::new(GetResponse {
            resource: Some(v1::Resource::clone(resource)),
            stamp: Some(stamp(read)),
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let patience = patience(request.metadata());
        let request = request.into_inner();
        let kind = known_kind(request.kind)?;
        if !request.pool.is_empty() && kind != Kind::Endpoint {
            return Err(status::invalid("pool", "selects endpoints only"));
        }
        let page_size = match request.page_size {
            0 => MAX_PAGE_SIZE,
            size => usize::try_from(size)
                .unwrap_or(MAX_PAGE_SIZE)
                .min(MAX_PAGE_SIZE),
        };
        let filter = ListFilter {
            labels: request.labels,
            pool: request.pool,
        };
        let (view, read) = self
            .context
            .read(consistency(request.consistency)?, patience)
            .await?;
        let page_of = |size| {
            view.page(kind, &filter, &request.page_token, size)
                .map_err(|error| status::invalid("page_token", error.to_string()))
        };
        let mut page = page_of(page_size)?;
        let fitting = fitting(&page);
        if fitting < page.resources.len() {
            page = page_of(fitting)?;
        }
        Ok(Response::new(ListResponse {
            resources: page
                .resources
                .iter()
                .map(|resource| v1::Resource::clone(resource))
                .collect(),
            next_page_token: page.next_page_token,
            stamp: Some(stamp(read)),
            resume_token: view.resume_token().to_string(),
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest {
            kinds,
            name,
            resume_token,
        } = request.into_inner();
        let kinds = kinds
            .into_iter()
            .map(known_kind)
            .collect::<Result<Vec<_>, _>>()?;
        let filter = WatchFilter {
            kinds,
            name: Some(name).filter(|name| !name.is_empty()),
        };
        let token = match resume_token.as_str() {
            "" => None,
            token => Some(token.parse::<ResumeToken>().map_err(status::watch)?),
        };
        let watch = self
            .context
            .cluster
            .watch(filter, token.as_ref())
            .map_err(status::watch)?;
        Ok(Response::new(
            follow(watch, self.context.stop.clone()).boxed(),
        ))
    }
}

/// How many resources of a page fit into a message; at least one.
fn fitting(page: &Page) -> usize {
    let mut bytes = 0;
    let beyond = page.resources.iter().position(|resource| {
        bytes += resource.encoded_len();
        bytes > PAGE_BYTES
    });
    beyond.map_or(page.resources.len(), |at| at.max(1))
}

/// The watch's messages, with a bookmark whenever nothing came for a while, until it fails or the node stops.
fn follow(
    watch: WatchStream,
    stop: CancellationToken,
) -> impl Stream<Item = Result<WatchResponse, Status>> + Send {
    stream::unfold(Some((watch, stop)), |state| async move {
        let (mut watch, stop) = state?;
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return Some((Err(status::unavailable("the node is stopping")), None)),
                event = tokio::time::timeout(BOOKMARK, watch.next()) => event,
            };
            match event {
                Ok(Ok(event)) => {
                    return Some((Ok(WatchResponse::from(&event)), Some((watch, stop))));
                }
                Ok(Err(error)) => return Some((Err(status::watch(error)), None)),
                Err(_) => {
                    if let Some(bookmark) = watch.bookmark() {
                        return Some((Ok(WatchResponse::from(&bookmark)), Some((watch, stop))));
                    }
                }
            }
        }
    })
}
