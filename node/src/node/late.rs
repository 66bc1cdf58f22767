//! The load exchange's place on the peer listener. That listener opens before the node knows its own id, and the exchange
//! needs the id: until it is there, callers are told to try again.

use quorate_endpoint::{LoadService, MESSAGE_LIMIT};
use quorate_proto::peer::v1::LoadUpdate;
use quorate_proto::peer::v1::load_exchange_server::{LoadExchange, LoadExchangeServer};
use std::sync::{Arc, OnceLock};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

/// Forwards to the service once it is set.
#[derive(Clone, Default)]
pub struct LateExchange(Arc<OnceLock<LoadService>>);

impl LateExchange {
    /// From here on streams are taken.
    pub fn set(&self, service: LoadService) {
        // Set once, by the one place that starts the plane.
        let _ = self.0.set(service);
    }

    /// What goes to the peer listener.
    pub fn routes(&self) -> Routes {
        let server = LoadExchangeServer::new(self.clone());
        Routes::new(server.max_decoding_message_size(MESSAGE_LIMIT))
    }
}

#[tonic::async_trait]
impl LoadExchange for LateExchange {
    type ReportStream = <LoadService as LoadExchange>::ReportStream;

    async fn report(
        &self,
        request: Request<Streaming<LoadUpdate>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        match self.0.get() {
            Some(service) => service.report(request).await,
            None => Err(Status::unavailable("this node is still joining")),
        }
    }
}
