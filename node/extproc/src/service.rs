//! The gRPC service: each call is an [`Exchange`].

use crate::exchange::Exchange;
use crate::server::Worker;
use quorate_proto::envoy::service::ext_proc::v3::ProcessingRequest;
use quorate_proto::envoy::service::ext_proc::v3::external_processor_server::ExternalProcessor;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Processor(pub Arc<Worker>);

#[tonic::async_trait]
impl ExternalProcessor for Processor {
    type ProcessStream = Exchange<Streaming<ProcessingRequest>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        Ok(Response::new(Exchange::new(
            Arc::clone(&self.0),
            request.into_inner(),
        )))
    }
}
