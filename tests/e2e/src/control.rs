//! The gRPC control API of one router.

use anyhow::Context;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use quorate_proto::v1;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::endpoints_client::EndpointsClient;
use quorate_proto::v1::resources_client::ResourcesClient;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Clients on one connection, which is made again when it breaks.
#[derive(Clone, Debug)]
pub struct Control {
    resources: ResourcesClient<Channel>,
    endpoints: EndpointsClient<Channel>,
    cluster: ClusterClient<Channel>,
}

/// A setting resource.
pub fn setting(name: &str, json: &str) -> v1::Resource {
    resource(
        name,
        v1::resource::Spec::Setting(v1::SettingSpec {
            json: json.to_owned(),
        }),
    )
}

/// A pool with default rules.
pub fn pool(name: &str) -> v1::Resource {
    resource(name, v1::resource::Spec::Pool(v1::PoolSpec::default()))
}

/// An endpoint of a pool.
pub fn endpoint(name: &str, pool: &str, address: SocketAddr) -> v1::Resource {
    let spec = v1::EndpointSpec {
        pool: pool.to_owned(),
        url: format!("http://{address}"),
        ..Default::default()
    };
    resource(name, v1::resource::Spec::Endpoint(spec))
}

/// One gRPC call with a request body of any bytes: the status code as text, and the body of the answer.
///
/// # Errors
/// No answer, or one without a status.
pub async fn raw_call(
    address: SocketAddr,
    path: &str,
    body: Vec<u8>,
) -> anyhow::Result<(String, Bytes)> {
    let stream = TokioIo::new(TcpStream::connect(address).await?);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
    let driver = tokio::spawn(connection);
    let request = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(body)))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let head = response.headers().get("grpc-status").cloned();
        let body = response.into_body().collect().await?;
        let status = head.or(body.trailers().and_then(|t| t.get("grpc-status").cloned()));
        let status = status.context("no grpc-status")?;
        anyhow::Ok((
            String::from_utf8_lossy(status.as_bytes()).into_owned(),
            body.to_bytes(),
        ))
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), answer)
        .await
        .context("no answer")?;
    driver.abort();
    answer
}

fn resource(name: &str, spec: v1::resource::Spec) -> v1::Resource {
    let metadata = v1::Metadata {
        name: name.to_owned(),
        ..Default::default()
    };
    v1::Resource {
        metadata: Some(metadata),
        spec: Some(spec),
    }
}

impl Control {
    /// A client of the router at `address`; connects with the first call.
    ///
    /// # Errors
    /// Never for a socket address.
    pub fn new(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self::over(Self::transport(address)?.connect_lazy()))
    }

    /// How to connect to `address`.
    ///
    /// # Errors
    /// Never for a socket address.
    pub fn transport(address: SocketAddr) -> anyhow::Result<Endpoint> {
        Ok(Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(Duration::from_secs(1))
            .tcp_nodelay(true))
    }

    /// Clients on a channel that the caller made.
    pub fn over(channel: Channel) -> Self {
        Self {
            resources: ResourcesClient::new(channel.clone()),
            endpoints: EndpointsClient::new(channel.clone()),
            cluster: ClusterClient::new(channel),
        }
    }

    /// The generated client of the resources service.
    pub fn resources(&self) -> ResourcesClient<Channel> {
        self.resources.clone()
    }

    /// Creates or replaces a resource under an idempotency key (empty: none).
    ///
    /// # Errors
    /// The server's.
    pub async fn apply(
        &self,
        resource: v1::Resource,
        key: &str,
        expected_version: Option<u64>,
    ) -> Result<v1::ApplyResponse, Status> {
        let request = v1::ApplyRequest {
            idempotency_key: key.to_owned(),
            expected_version,
            resource: Some(resource),
            validate_only: false,
        };
        Ok(self.resources().apply(request).await?.into_inner())
    }

    /// Deletes a resource.
    ///
    /// # Errors
    /// The server's.
    pub async fn delete(&self, kind: v1::Kind, name: &str) -> Result<v1::Resource, Status> {
        let request = v1::DeleteRequest {
            kind: kind.into(),
            name: name.to_owned(),
            ..Default::default()
        };
        let response = self.resources().delete(request).await?.into_inner();
        response
            .resource
            .ok_or_else(|| Status::internal("a delete without the resource"))
    }

    /// Reads one resource.
    ///
    /// # Errors
    /// The server's.
    pub async fn get(
        &self,
        kind: v1::Kind,
        name: &str,
        consistency: v1::Consistency,
    ) -> Result<v1::GetResponse, Status> {
        let request = v1::GetRequest {
            kind: kind.into(),
            name: name.to_owned(),
            consistency: consistency.into(),
        };
        Ok(self.resources().get(request).await?.into_inner())
    }

    /// Reads all resources of a kind, page by page.
    ///
    /// # Errors
    /// The server's.
    pub async fn list(
        &self,
        kind: v1::Kind,
        consistency: v1::Consistency,
    ) -> Result<Vec<v1::Resource>, Status> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListRequest {
                kind: kind.into(),
                consistency: consistency.into(),
                page_token,
                page_size: 500,
                ..Default::default()
            };
            let page = self.resources().list(request).await?.into_inner();
            all.extend(page.resources);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            page_token = page.next_page_token;
        }
    }

    /// Changes of one kind, from the present state on or from a resume token.
    ///
    /// # Errors
    /// The server's.
    pub async fn watch(
        &self,
        kind: v1::Kind,
        resume_token: &str,
    ) -> Result<tonic::Streaming<v1::WatchResponse>, Status> {
        let request = v1::WatchRequest {
            kinds: vec![kind.into()],
            resume_token: resume_token.to_owned(),
            ..Default::default()
        };
        Ok(self.resources().watch(request).await?.into_inner())
    }

    /// What this router knows of an endpoint.
    ///
    /// # Errors
    /// The server's.
    pub async fn describe(&self, name: &str) -> Result<v1::EndpointStatus, Status> {
        let request = v1::DescribeEndpointRequest {
            name: name.to_owned(),
        };
        let response = self.endpoints.clone().describe(request).await?.into_inner();
        response
            .status
            .ok_or_else(|| Status::internal("a description without a status"))
    }

    /// Drains an endpoint or takes it back into use.
    ///
    /// # Errors
    /// The server's.
    pub async fn drain(&self, name: &str, drain: bool) -> Result<(), Status> {
        let request = v1::DrainEndpointRequest {
            name: name.to_owned(),
            drain,
            ..Default::default()
        };
        self.endpoints.clone().drain(request).await?;
        Ok(())
    }

    /// The cluster as this router sees it.
    ///
    /// # Errors
    /// The server's.
    pub async fn status(&self) -> Result<v1::ClusterStatusResponse, Status> {
        Ok(self
            .cluster
            .clone()
            .status(v1::ClusterStatusRequest {})
            .await?
            .into_inner())
    }

    /// The id of the node with this name.
    ///
    /// # Errors
    /// It is not a member.
    pub async fn node_id(&self, name: &str) -> anyhow::Result<u64> {
        let status = self.status().await?;
        let member = status.members.iter().find(|member| member.name == name);
        Ok(member
            .with_context(|| format!("{name} is not a member"))?
            .node_id)
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// The server's.
    pub async fn promote(&self, node_id: u64) -> Result<v1::MembershipResponse, Status> {
        let request = v1::PromoteRequest {
            node_id,
            ..Default::default()
        };
        Ok(self.cluster.clone().promote(request).await?.into_inner())
    }

    /// Takes a node out for good.
    ///
    /// # Errors
    /// The server's.
    pub async fn remove(&self, node_id: u64) -> Result<v1::MembershipResponse, Status> {
        let request = v1::RemoveNodeRequest {
            node_id,
            ..Default::default()
        };
        Ok(self.cluster.clone().remove(request).await?.into_inner())
    }

    /// Puts a learner in a dead voter's place.
    ///
    /// # Errors
    /// The server's.
    pub async fn replace(
        &self,
        dead_node_id: u64,
        new_node_id: u64,
    ) -> Result<v1::MembershipResponse, Status> {
        let request = v1::ReplaceRequest {
            dead_node_id,
            new_node_id,
            ..Default::default()
        };
        Ok(self.cluster.clone().replace(request).await?.into_inner())
    }

    /// Hands the leadership over (0: to the best candidate).
    ///
    /// # Errors
    /// The server's.
    pub async fn transfer(&self, node_id: u64) -> Result<u64, Status> {
        let request = v1::TransferLeadershipRequest { node_id };
        Ok(self
            .cluster
            .clone()
            .transfer_leadership(request)
            .await?
            .into_inner()
            .leader_id)
    }
}
