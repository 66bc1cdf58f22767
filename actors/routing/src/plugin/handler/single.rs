//! `single-profile-handler`: the only profile, once.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pick::NotPicked;
use crate::pipeline::{Context, Extras, ProfileHandler, Stages, Step};

/// See the module's documentation.
#[derive(Debug)]
pub struct Single;

impl ProfileHandler for Single {
    fn next(&self, _: &Context<'_>, stages: &Stages) -> Step {
        if stages.is_empty() {
            Step::Run(0)
        } else {
            Step::Done
        }
    }

    fn finish(&self, _: &Context<'_>, _: &Stages, _: &mut Extras) -> Result<usize, NotPicked> {
        Ok(0)
    }
}

/// The only profile is required.
pub(crate) fn need_one_profile(fields: &mut Fields<'_>, build: &Build<'_>) {
    let n = build.profile_names().count();
    if n != 1 {
        let path = fields.path().to_owned();
        fields.findings().error(
            path,
            format!("needs exactly one scheduling profile; there are {n}"),
        );
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    need_one_profile(fields, build);
    Built::handler(Single)
}
