//! The door: the stages of the request path as one tower service, one for each client connection.

use crate::admit::{Admit, AdmitLayer};
use crate::answer::AnswerLayer;
use crate::answer::Answers;
use crate::authenticate::{Authenticate, AuthenticateLayer};
use crate::authorize::{Authorize, AuthorizeLayer};
use crate::body::GatewayBody;
use crate::classify::{Classify, ClassifyLayer};
use crate::client::{Client, InFlight};
use crate::forward::Forward;
use crate::parse::{Parse, ParseLayer};
use crate::trace::{Trace, TraceLayer};
use crate::worker::Worker;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower::{Service, ServiceBuilder};

/// The stages, outermost first.
type Stages = Trace<Answers<Authenticate<Parse<Authorize<Classify<Admit<Forward>>>>>>>;

/// Every request of one client connection goes through this, and every request has an answer.
#[derive(Clone)]
pub(crate) struct GatewayService {
    client: Arc<Client>,
    stages: Stages,
}

impl GatewayService {
    pub fn new(worker: &Arc<Worker>, client: &Arc<Client>) -> Self {
        let stages = ServiceBuilder::new()
            .layer(TraceLayer(Arc::clone(worker)))
            .layer(AnswerLayer {
                worker: Arc::clone(worker),
                client: Arc::clone(client),
            })
            .layer(AuthenticateLayer(Arc::clone(worker)))
            .layer(ParseLayer {
                worker: Arc::clone(worker),
                client: Arc::clone(client),
            })
            .layer(AuthorizeLayer(Arc::clone(worker)))
            .layer(ClassifyLayer(Arc::clone(worker)))
            .layer(AdmitLayer)
            .service(Forward(Arc::clone(worker)));
        Self {
            client: Arc::clone(client),
            stages,
        }
    }
}

impl<B> Service<Request<B>> for GatewayService
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    type Response = Response<GatewayBody>;
    type Error = Infallible;
    type Future = Serving<<Stages as Service<Request<B>>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<B>>::poll_ready(&mut self.stages, cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let in_flight = self.client.begin();
        Serving {
            stages: self.stages.call(request),
            counted: Some((Arc::clone(&self.client), in_flight)),
        }
    }
}

impl<B> hyper::service::Service<Request<B>> for GatewayService
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    type Response = Response<GatewayBody>;
    type Error = Infallible;
    type Future = <Self as Service<Request<B>>>::Future;

    fn call(&self, request: Request<B>) -> Self::Future {
        // No stage makes a request wait for readiness: admission is a future of its own.
        Service::call(&mut self.clone(), request)
    }
}

/// Counts the request until its answer is written.
pub(crate) struct Serving<F> {
    stages: F,
    counted: Option<(Arc<Client>, InFlight)>,
}

impl<F> Future for Serving<F>
where
    F: Future<Output = Result<Response<GatewayBody>, Infallible>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Ok(response) = ready!(Pin::new(&mut self.stages).poll(cx));
        Poll::Ready(Ok(match self.counted.take() {
            Some((client, in_flight)) => response.map(|body| body.counted(&client, in_flight)),
            None => response,
        }))
    }
}
