//! `data-parallel-profile-handler`: the only profile picks a rank; the request goes to the primary port of the rank's host, with the rank's
//! address in `x-data-parallel-host-port`. Where the pool has no endpoint at that port, the request goes to the rank itself.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pick::NotPicked;
use crate::pipeline::{Context, Extras, ProfileHandler, Stages, Step};
use http::{HeaderName, HeaderValue};

const HEADER: HeaderName = HeaderName::from_static("x-data-parallel-host-port");

/// See the module's documentation.
#[derive(Debug)]
pub struct DataParallel {
    /// Where the ranks' front listens.
    pub primary_port: u16,
}

impl ProfileHandler for DataParallel {
    fn next(&self, _: &Context<'_>, stages: &Stages) -> Step {
        if stages.is_empty() {
            Step::Run(0)
        } else {
            Step::Done
        }
    }

    fn finish(
        &self,
        context: &Context<'_>,
        stages: &Stages,
        extras: &mut Extras,
    ) -> Result<usize, NotPicked> {
        let rank = stages.picked(0).first().and_then(|r| context.endpoint(*r));
        let Some(rank) = rank.map(|endpoint| &endpoint.spec().target) else {
            return Ok(0);
        };
        if rank.port != self.primary_port {
            let front = context.endpoints.iter().position(|e| {
                let target = &e.spec().target;
                target.host == rank.host && target.port == self.primary_port
            });
            if let (Some(front), Ok(value)) = (front, HeaderValue::from_str(&rank.authority)) {
                extras.request_headers.push((HEADER, value));
                extras.via = Some(front);
            }
        }
        Ok(0)
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    super::single::need_one_profile(fields, build);
    let port = fields.whole("primaryPort", 8000, 1..=65535);
    Built::handler(DataParallel {
        primary_port: u16::try_from(port).unwrap_or(8000),
    })
}
