// long: one fake server with all services of the control API.
//! A control API server in memory, with failures on demand.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use quorate_proto::v1::{
    self, ApplyOutcome, ClusterStatusResponse, EndpointStatus, Kind, MembershipResponse, ReadStamp,
    Resource, WatchResponse, cache_server, cluster_server, decisions_server,
    endpoint_status::State as EndpointState, endpoints_server, pools_server, resource::Spec,
    resources_server, watch_response::Type,
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Code, Request, Response, Status,
    transport::{Server, ServerTlsConfig},
};
use tonic_types::{ErrorDetails, StatusExt as _};

#[derive(Default)]
pub struct State {
    pub resources: BTreeMap<(i32, String), Resource>,
    pub revision: u64,
    /// Changes, for watches that resume.
    pub history: Vec<WatchResponse>,
    /// Tokens below this are too old.
    pub floor: u64,
    answered: HashMap<String, v1::ApplyResponse>,
    /// Every apply that was not a mere check, as it came in.
    pub applies: Vec<v1::ApplyRequest>,
    /// So many calls are refused because there is no leader.
    pub no_leader: u32,
    /// So many writes take effect, but their answers get lost.
    pub lose_answers: u32,
    /// Calls are never answered.
    pub hang: bool,
    /// Requests in flight at each look; the last one stays.
    pub in_flight: VecDeque<u32>,
    pub watchers: Vec<mpsc::Sender<Result<WatchResponse, Status>>>,
    /// Tokens that watches began with.
    pub resumed: Vec<String>,
    pub cluster: ClusterStatusResponse,
    pub promoted: Vec<u64>,
    /// What every question for records is answered with.
    pub decisions: v1::DecisionRecords,
    /// Questions for lists of records, as they came in.
    pub listed: Vec<v1::ListDecisionsRequest>,
    /// What questions about caches are answered with.
    pub cache_status: v1::CacheStatusResponse,
    pub cache_lookup: v1::CacheLookupResponse,
    pub cache_top: v1::CacheTopResponse,
    /// Prompts that were looked up, as they came in.
    pub looked_up: Vec<v1::CacheLookupRequest>,
}

/// A running fake.
#[derive(Clone, Default)]
pub struct Fake {
    state: Arc<Mutex<State>>,
}

pub struct Running {
    pub address: SocketAddr,
    pub fake: Fake,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.fake.lock()
    }
}

impl Fake {
    pub async fn start(self) -> Running {
        self.start_with(None).await
    }

    pub async fn start_with(self, tls: Option<ServerTlsConfig>) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        let router = server
            .add_service(resources_server::ResourcesServer::new(self.clone()))
            .add_service(endpoints_server::EndpointsServer::new(self.clone()))
            .add_service(decisions_server::DecisionsServer::new(self.clone()))
            .add_service(cache_server::CacheServer::new(self.clone()))
            .add_service(pools_server::PoolsServer::new(self.clone()))
            .add_service(cluster_server::ClusterServer::new(self.clone()));
        let task = tokio::spawn(async move {
            router
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Running {
            address,
            fake: self,
            task,
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn admit(&self) -> Result<(), Status> {
        if self.lock().hang {
            std::future::pending::<()>().await;
        }
        let mut state = self.lock();
        if state.no_leader > 0 {
            state.no_leader -= 1;
            let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(20)));
            return Err(Status::with_error_details(
                Code::Unavailable,
                "there is no leader",
                details,
            ));
        }
        Ok(())
    }
}

fn kind_of(resource: &Resource) -> Kind {
    match resource.spec {
        Some(Spec::Pool(_)) => Kind::Pool,
        Some(Spec::Endpoint(_)) => Kind::Endpoint,
        Some(Spec::Node(_)) => Kind::Node,
        Some(Spec::Region(_)) => Kind::Region,
        Some(Spec::Setting(_)) => Kind::Setting,
        Some(Spec::SchedulingConfig(_)) => Kind::SchedulingConfig,
        Some(Spec::ConfigRevision(_)) => Kind::ConfigRevision,
        Some(Spec::Objective(_)) => Kind::Objective,
        Some(Spec::ModelRewrite(_)) => Kind::ModelRewrite,
        Some(Spec::Tenant(_)) => Kind::Tenant,
        Some(Spec::ApiKey(_)) => Kind::ApiKey,
        None => Kind::Unspecified,
    }
}

fn name_of(resource: &Resource) -> String {
    resource
        .metadata
        .as_ref()
        .map(|m| m.name.clone())
        .unwrap_or_default()
}

fn not_found(kind: Kind, name: &str) -> Status {
    let kind = kind
        .as_str_name()
        .trim_start_matches("KIND_")
        .to_lowercase();
    let message = format!("there is no {kind} {name:?}");
    Status::with_error_details(
        Code::NotFound,
        message.clone(),
        ErrorDetails::with_resource_info(kind, name, "", message),
    )
}

impl State {
    /// Writes a resource as the cluster would.
    pub fn put(&mut self, mut resource: Resource) -> Resource {
        self.revision += 1;
        let kind = kind_of(&resource);
        let key = (kind.into(), name_of(&resource));
        let old = self.resources.get(&key).and_then(|r| r.metadata.clone());
        if let Some(metadata) = &mut resource.metadata {
            metadata.resource_version = self.revision;
            metadata.incarnation = old.as_ref().map_or(self.revision, |m| m.incarnation);
            metadata.generation = old.as_ref().map_or(1, |m| m.generation + 1);
            metadata.created_at = Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 0,
            });
        }
        self.resources.insert(key, resource.clone());
        self.publish(Type::Put, resource.clone());
        resource
    }

    fn publish(&mut self, kind: Type, resource: Resource) {
        let event = WatchResponse {
            r#type: kind.into(),
            resource: Some(resource),
            resume_token: self.revision.to_string(),
        };
        self.history.push(event.clone());
        self.watchers
            .retain(|watcher| watcher.try_send(Ok(event.clone())).is_ok());
    }

    fn check(&self, request: &v1::ApplyRequest) -> Result<Resource, Status> {
        let resource = request.resource.clone().unwrap_or_default();
        let kind = kind_of(&resource);
        let invalid = |field: &str, message: &str| {
            Err(Status::with_error_details(
                Code::InvalidArgument,
                format!("{field}: {message}"),
                ErrorDetails::with_bad_request_violation(field, message),
            ))
        };
        let is_other_fallback = |other: &Resource| {
            matches!(&other.spec, Some(Spec::Pool(pool)) if pool.fallback)
                && name_of(other) != name_of(&resource)
        };
        match &resource.spec {
            Some(Spec::Pool(pool))
                if pool.fallback && self.resources.values().any(is_other_fallback) =>
            {
                return Err(Status::failed_precondition(
                    "another pool is the fallback pool already",
                ));
            }
            Some(Spec::Pool(pool)) if pool.target_ports.len() > 8 => {
                return invalid("spec.pool.target_ports", "must be at most 8");
            }
            Some(Spec::Endpoint(endpoint)) if !endpoint.url.starts_with("http") => {
                return invalid("spec.endpoint.url", "must begin with http:// or https://");
            }
            Some(Spec::Endpoint(endpoint))
                if !endpoint.pool.is_empty()
                    && !self
                        .resources
                        .contains_key(&(Kind::Pool.into(), endpoint.pool.clone())) =>
            {
                let message = format!("there is no pool {:?}", endpoint.pool);
                let details = ErrorDetails::with_precondition_failure_violation(
                    "pool",
                    "endpoint",
                    message.clone(),
                );
                return Err(Status::with_error_details(
                    Code::FailedPrecondition,
                    message,
                    details,
                ));
            }
            _ => {}
        }
        let there = self.resources.get(&(kind.into(), name_of(&resource)));
        let version = there
            .and_then(|r| r.metadata.as_ref())
            .map_or(0, |m| m.resource_version);
        if let Some(expected) = request
            .expected_version
            .filter(|expected| *expected != version)
        {
            return Err(Status::aborted(format!(
                "has version {version}, not {expected}"
            )));
        }
        Ok(resource)
    }

    fn apply(&mut self, request: &v1::ApplyRequest) -> Result<v1::ApplyResponse, Status> {
        if let Some(answer) = self.answered.get(&request.idempotency_key) {
            return Ok(answer.clone());
        }
        let resource = self.check(request)?;
        let there = self
            .resources
            .get(&(kind_of(&resource).into(), name_of(&resource)))
            .cloned();
        let same = there.as_ref().is_some_and(|there| {
            let (old, new) = (
                there.metadata.clone().unwrap_or_default(),
                resource.metadata.clone().unwrap_or_default(),
            );
            there.spec == resource.spec
                && old.labels == new.labels
                && old.annotations == new.annotations
        });
        let (outcome, resource) = match (there, same) {
            (Some(there), true) => (ApplyOutcome::Unchanged, there),
            (Some(_), false) => (ApplyOutcome::Updated, resource),
            (None, _) => (ApplyOutcome::Created, resource),
        };
        if request.validate_only {
            return Ok(v1::ApplyResponse {
                resource: Some(resource),
                outcome: outcome.into(),
                ..Default::default()
            });
        }
        self.applies.push(request.clone());
        let resource = if outcome == ApplyOutcome::Unchanged {
            resource
        } else {
            self.put(resource)
        };
        let answer = v1::ApplyResponse {
            resource: Some(resource),
            outcome: outcome.into(),
            ..Default::default()
        };
        self.answered
            .insert(request.idempotency_key.clone(), answer.clone());
        Ok(answer)
    }
}

#[tonic::async_trait]
impl resources_server::Resources for Fake {
    async fn apply(
        &self,
        request: Request<v1::ApplyRequest>,
    ) -> Result<Response<v1::ApplyResponse>, Status> {
        self.admit().await?;
        let mut state = self.lock();
        let request = request.into_inner();
        let answer = state.apply(&request)?;
        if !request.validate_only && state.lose_answers > 0 {
            state.lose_answers -= 1;
            return Err(Status::unavailable("the answer got lost"));
        }
        Ok(Response::new(answer))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        self.admit().await?;
        let request = request.into_inner();
        let mut state = self.lock();
        let kind = request.kind();
        let Some(resource) = state.resources.remove(&(kind.into(), request.name.clone())) else {
            return Err(not_found(kind, &request.name));
        };
        state.revision += 1;
        state.publish(Type::Delete, resource.clone());
        Ok(Response::new(v1::DeleteResponse {
            resource: Some(resource),
        }))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        self.admit().await?;
        let request = request.into_inner();
        let state = self.lock();
        let key = (request.kind, request.name.clone());
        let resource = state
            .resources
            .get(&key)
            .cloned()
            .ok_or_else(|| not_found(request.kind(), &request.name))?;
        Ok(Response::new(v1::GetResponse {
            resource: Some(resource),
            stamp: Some(stamp(&state)),
        }))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        self.admit().await?;
        let request = request.into_inner();
        let state = self.lock();
        let matches = |r: &Resource| {
            let labels = &r.metadata.as_ref().unwrap().labels;
            let pool = match &r.spec {
                Some(Spec::Endpoint(spec)) => spec.pool.as_str(),
                _ => "",
            };
            request.labels.iter().all(|(k, v)| labels.get(k) == Some(v))
                && (request.pool.is_empty() || request.pool == pool)
        };
        let all = state
            .resources
            .iter()
            .filter(|((kind, _), r)| *kind == request.kind && matches(r));
        // Small pages, so that paging is used.
        let mut page: Vec<_> = all
            .filter(|((_, name), _)| *name > request.page_token)
            .take(3)
            .collect();
        let more = page.len() == 3;
        page.truncate(2);
        let next_page_token = if more {
            page.last()
                .map(|((_, name), _)| name.clone())
                .unwrap_or_default()
        } else {
            String::new()
        };
        Ok(Response::new(v1::ListResponse {
            resources: page.into_iter().map(|(_, r)| r.clone()).collect(),
            next_page_token,
            stamp: Some(stamp(&state)),
            resume_token: state.revision.to_string(),
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.admit().await?;
        let request = request.into_inner();
        let mut state = self.lock();
        state.resumed.push(request.resume_token.clone());
        let token = request.resume_token.parse::<u64>().ok();
        if token.is_some_and(|token| token < state.floor) {
            return Err(Status::out_of_range(
                "the changes since the resume token are no longer kept",
            ));
        }
        let (sender, receiver) = mpsc::channel(1000);
        match token {
            Some(token) => {
                for event in &state.history {
                    if event.resume_token.parse::<u64>().unwrap() > token {
                        sender.try_send(Ok(event.clone())).unwrap();
                    }
                }
            }
            None => {
                for resource in state.resources.values() {
                    let event = WatchResponse {
                        r#type: Type::Put.into(),
                        resource: Some(resource.clone()),
                        resume_token: String::new(),
                    };
                    sender.try_send(Ok(event)).unwrap();
                }
                let resume_token = state.revision.to_string();
                let synced = WatchResponse {
                    r#type: Type::Synced.into(),
                    resource: None,
                    resume_token,
                };
                sender.try_send(Ok(synced)).unwrap();
            }
        }
        state.watchers.push(sender);
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }
}

fn stamp(state: &State) -> ReadStamp {
    let age = Some(prost_types::Duration {
        seconds: 0,
        nanos: 12_345_678,
    });
    ReadStamp {
        applied_index: state.revision,
        age,
        node_id: 2,
    }
}

#[tonic::async_trait]
impl endpoints_server::Endpoints for Fake {
    async fn describe(
        &self,
        request: Request<v1::DescribeEndpointRequest>,
    ) -> Result<Response<v1::DescribeEndpointResponse>, Status> {
        self.admit().await?;
        let name = request.into_inner().name;
        let mut state = self.lock();
        let key = (Kind::Endpoint.into(), name.clone());
        let resource = state
            .resources
            .get(&key)
            .cloned()
            .ok_or_else(|| not_found(Kind::Endpoint, &name))?;
        let draining = matches!(&resource.spec, Some(Spec::Endpoint(spec)) if spec.draining);
        let total = if state.in_flight.len() > 1 {
            state.in_flight.pop_front()
        } else {
            state.in_flight.front().copied()
        };
        let (which, reasons) = if draining {
            (
                EndpointState::Draining,
                vec!["it is being drained".to_owned()],
            )
        } else {
            (EndpointState::Ready, vec![])
        };
        let status = EndpointStatus {
            state: which.into(),
            reasons,
            owner_node_id: 1,
            node_id: 2,
            local_in_flight: 1,
            total_in_flight: total.unwrap_or(0),
            running: Some(3),
            waiting: None,
            kv_cache_usage: Some(0.125),
            load_age: Some(prost_types::Duration {
                seconds: 0,
                nanos: 300_000_000,
            }),
            models: vec!["llama".to_owned()],
            adapters: vec![],
            breaker: "closed".to_owned(),
            last_error: String::new(),
            engine: 1,
            conditions: vec!["KvEventsSilent: nothing is announced".to_owned()],
        };
        Ok(Response::new(v1::DescribeEndpointResponse {
            resource: Some(resource),
            status: Some(status),
        }))
    }

    async fn drain(
        &self,
        request: Request<v1::DrainEndpointRequest>,
    ) -> Result<Response<v1::DrainEndpointResponse>, Status> {
        self.admit().await?;
        let request = request.into_inner();
        let mut state = self.lock();
        let key = (Kind::Endpoint.into(), request.name.clone());
        let mut resource = state
            .resources
            .get(&key)
            .cloned()
            .ok_or_else(|| not_found(Kind::Endpoint, &request.name))?;
        if let Some(Spec::Endpoint(spec)) = &mut resource.spec {
            spec.draining = request.drain;
        }
        let resource = state.put(resource);
        Ok(Response::new(v1::DrainEndpointResponse {
            resource: Some(resource),
        }))
    }
}

impl Fake {
    fn membership(&self) -> Result<Response<MembershipResponse>, Status> {
        Ok(Response::new(MembershipResponse {
            voters: vec![1, 2],
            learners: vec![3],
        }))
    }
}

#[tonic::async_trait]
impl cluster_server::Cluster for Fake {
    async fn status(
        &self,
        _: Request<v1::ClusterStatusRequest>,
    ) -> Result<Response<ClusterStatusResponse>, Status> {
        self.admit().await?;
        Ok(Response::new(self.lock().cluster.clone()))
    }

    async fn promote(
        &self,
        request: Request<v1::PromoteRequest>,
    ) -> Result<Response<MembershipResponse>, Status> {
        self.lock().promoted.push(request.into_inner().node_id);
        self.membership()
    }

    async fn demote(
        &self,
        _: Request<v1::DemoteRequest>,
    ) -> Result<Response<MembershipResponse>, Status> {
        self.membership()
    }

    async fn remove(
        &self,
        _: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<MembershipResponse>, Status> {
        Err(Status::failed_precondition("node 1 is the only voter"))
    }

    async fn replace(
        &self,
        _: Request<v1::ReplaceRequest>,
    ) -> Result<Response<MembershipResponse>, Status> {
        self.membership()
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        let leader_id = match request.into_inner().node_id {
            0 => 2,
            id => id,
        };
        Ok(Response::new(v1::TransferLeadershipResponse { leader_id }))
    }
}

#[tonic::async_trait]
impl pools_server::Pools for Fake {
    async fn describe(
        &self,
        request: Request<v1::DescribePoolRequest>,
    ) -> Result<Response<v1::DescribePoolResponse>, Status> {
        self.admit().await?;
        let name = request.into_inner().name;
        let state = self.lock();
        let resource = state.resources.get(&(Kind::Pool.into(), name.clone()));
        Ok(Response::new(v1::DescribePoolResponse {
            resource: Some(
                resource
                    .cloned()
                    .ok_or_else(|| not_found(Kind::Pool, &name))?,
            ),
            status: Some(v1::PoolStatus {
                node_id: 1,
                scheduling_config: "chat".to_owned(),
                generation: 3,
                objectives: 2,
                ..v1::PoolStatus::default()
            }),
        }))
    }
}
