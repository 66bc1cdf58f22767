//! gRPC health as endpoint pickers answer it: `liveness` while the process runs; everything else while the node has its view and
//! does not drain.

use crate::server::Core;
use futures_util::Stream;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// Always serves.
const LIVENESS: &str = "liveness";
/// Serve while the node takes requests.
const READINESS: &[&str] = &[
    "",
    "readiness",
    "envoy.service.ext_proc.v3.ExternalProcessor",
];
/// How often a watch looks for a change.
const LOOK: Duration = Duration::from_millis(250);

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct NodeHealth(pub Arc<Core>);

impl NodeHealth {
    fn status(&self, service: &str) -> Option<ServingStatus> {
        if service == LIVENESS {
            return Some(ServingStatus::Serving);
        }
        READINESS
            .contains(&service)
            .then(|| match self.0.is_ready() {
                true => ServingStatus::Serving,
                false => ServingStatus::NotServing,
            })
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl Health for NodeHealth {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match self.status(&service) {
            Some(status) => Ok(Response::new(response(status))),
            None => Err(Status::not_found(format!("no service {service:?} here"))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let health = self.clone();
        let ended = health.0.closing.clone();
        let changes = futures_util::stream::unfold(
            (None, tokio::time::interval(LOOK)),
            move |(said, mut tick)| {
                let (health, service, ended) = (health.clone(), service.clone(), ended.clone());
                async move {
                    loop {
                        // The protocol's answer for a service that may come later.
                        let status = health
                            .status(&service)
                            .unwrap_or(ServingStatus::ServiceUnknown);
                        if said != Some(status) {
                            return Some((Ok(response(status)), (Some(status), tick)));
                        }
                        // An open watch must not hold up the end of the drain.
                        ended.run_until_cancelled(tick.tick()).await?;
                    }
                }
            },
        );
        Ok(Response::new(Box::pin(changes)))
    }
}
