//! Live state of endpoints, and draining them.

use super::deadline::patience;
use super::{ControlContext, status};
use quorate_proto::store::v1::{Command, PutResource, command::Op, rejection::Code as Refusal};
use quorate_proto::v1::{
    self, DescribeEndpointRequest, DescribeEndpointResponse, DrainEndpointRequest,
    DrainEndpointResponse, EndpointStatus, Kind, endpoint_status::State,
    endpoints_server::Endpoints, resource::Spec,
};
use quorate_raft::state::{ResourceExt as _, validate};
use quorate_raft::{Consistency, ProposeError};
use std::time::Duration;
use tonic::{Code, Request, Response, Status};

/// How often a drain is tried while others write the same endpoint.
const DRAIN_ATTEMPTS: u32 = 10;

pub struct Service {
    context: ControlContext,
}

impl Service {
    pub fn new(context: ControlContext) -> Self {
        Self { context }
    }

    /// One attempt; None if somebody else wrote the endpoint in between.
    async fn try_drain(
        &self,
        request: &DrainEndpointRequest,
        patience: Duration,
    ) -> Result<Option<v1::Resource>, Status> {
        let name = request.name.as_str();
        let (view, _) = self
            .context
            .read(Consistency::Linearizable, patience)
            .await?;
        let mut resource = view
            .get(Kind::Endpoint, name)
            .map(|resource| v1::Resource::clone(resource))
            .ok_or_else(|| status::not_found(Kind::Endpoint, name))?;
        match &mut resource.spec {
            // Also a repeated call whose first attempt has done it.
            Some(Spec::Endpoint(spec)) if spec.draining == request.drain => {
                return Ok(Some(resource));
            }
            Some(Spec::Endpoint(spec)) => spec.draining = request.drain,
            _ => return Err(Status::internal("the endpoint has no spec")),
        }
        let expected_version = Some(resource.version());
        let op = Op::Put(PutResource {
            resource: Some(resource),
            expected_version,
        });
        let command = Command {
            idempotency_key: request.idempotency_key.clone(),
            op: Some(op),
            ..Command::default()
        };
        match self.context.propose(command, patience).await {
            Ok(applied) => Ok(Some(v1::Resource::clone(&applied.resource))),
            Err(ProposeError::Rejected(rejection))
                if rejection.code() == Refusal::VersionConflict =>
            {
                Ok(None)
            }
            // The first attempt of this call took effect, and the endpoint was changed back since.
            Err(ProposeError::Rejected(rejection)) if rejection.code() == Refusal::KeyReused => {
                let message = "a call with this idempotency key was applied before, and the endpoint was changed since";
                Err(Status::new(Code::Aborted, message))
            }
            Err(error) => Err(status::proposed(error, Kind::Endpoint, name)),
        }
    }
}

#[tonic::async_trait]
impl Endpoints for Service {
    async fn describe(
        &self,
        request: Request<DescribeEndpointRequest>,
    ) -> Result<Response<DescribeEndpointResponse>, Status> {
        let name = request.into_inner().name;
        let view = self.context.cluster.view();
        let resource = view
            .get(Kind::Endpoint, &name)
            .ok_or_else(|| status::not_found(Kind::Endpoint, &name))?;
        // Between the write of an endpoint and its actor's start there is a moment.
        let status = self.context.plane.describe(&name).unwrap_or_else(|| EndpointStatus {
            state: State::Unknown.into(),
            reasons: vec!["it was declared a moment ago and is not known to this node's endpoint actors yet".to_owned()],
            node_id: self.context.cluster.node_id(),
            ..EndpointStatus::default()
        });
        Ok(Response::new(DescribeEndpointResponse {
            resource: Some(v1::Resource::clone(resource)),
            status: Some(status),
        }))
    }

    async fn drain(
        &self,
        request: Request<DrainEndpointRequest>,
    ) -> Result<Response<DrainEndpointResponse>, Status> {
        let patience = patience(request.metadata());
        let request = request.into_inner();
        validate::idempotency_key(&request.idempotency_key).map_err(status::field)?;
        for _ in 0..DRAIN_ATTEMPTS {
            if let Some(resource) = self.try_drain(&request, patience).await? {
                tracing::info!(
                    endpoint = request.name,
                    drain = request.drain,
                    "drain was asked for"
                );
                return Ok(Response::new(DrainEndpointResponse {
                    resource: Some(resource),
                }));
            }
        }
        Err(Status::aborted(format!(
            "endpoint {:?} is being written by others all the time",
            request.name
        )))
    }
}
