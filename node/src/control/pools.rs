//! How pools schedule, as this node does it.

use super::{ControlContext, status};
use quorate_proto::v1::{
    DescribePoolRequest, DescribePoolResponse, Kind, PoolStatus, Resource, pools_server::Pools,
};
use tonic::{Request, Response, Status};

pub struct Service {
    context: ControlContext,
}

impl Service {
    pub fn new(context: ControlContext) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl Pools for Service {
    async fn describe(
        &self,
        request: Request<DescribePoolRequest>,
    ) -> Result<Response<DescribePoolResponse>, Status> {
        let name = request.into_inner().name;
        let view = self.context.cluster.view();
        let resource = view
            .get(Kind::Pool, &name)
            .ok_or_else(|| status::not_found(Kind::Pool, &name))?;
        // Between the write of a pool and the moment that requests are routed by it there is nothing to say.
        let status = self
            .context
            .plane
            .describe_pool(&name)
            .unwrap_or_else(|| PoolStatus {
                node_id: self.context.cluster.node_id(),
                ..PoolStatus::default()
            });
        Ok(Response::new(DescribePoolResponse {
            resource: Some(Resource::clone(resource)),
            status: Some(status),
        }))
    }
}
