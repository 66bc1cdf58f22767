//! `always-disagg-pd-decider`: always. `always-disagg-multimodal-decider`: with anything multimodal in the prompt.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Decider, Row};

/// `always-disagg-pd-decider`.
#[derive(Debug)]
pub struct Always;

impl Decider for Always {
    fn wants(&self, _: &Context<'_>, _: Option<Row>) -> bool {
        true
    }
}

/// `always-disagg-multimodal-decider`.
#[derive(Debug)]
pub struct AnyMultimodal;

impl Decider for AnyMultimodal {
    fn wants(&self, context: &Context<'_>, _: Option<Row>) -> bool {
        !context.request.multimodal.is_empty()
    }
}

pub(crate) fn build_always(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::decider(Always)
}

pub(crate) fn build_multimodal(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::decider(AnyMultimodal)
}
