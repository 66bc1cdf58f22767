//! `header-profile-handler`: the profile that a header names. A name that nobody has is the client's error.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pick::{Denied, NotPicked};
use crate::pipeline::{Context, Extras, ProfileHandler, Stages, Step};
use crate::plugin::labels::header_name;
use http::{HeaderName, StatusCode};

/// See the module's documentation.
#[derive(Debug)]
pub struct HeaderProfile {
    /// The header.
    pub header: HeaderName,
    /// Without the header.
    pub default: usize,
    /// By number.
    pub profiles: Vec<String>,
}

impl ProfileHandler for HeaderProfile {
    fn next(&self, context: &Context<'_>, stages: &Stages) -> Step {
        if !stages.is_empty() {
            return Step::Done;
        }
        let Some(name) = context.request.header(&self.header) else {
            return Step::Run(self.default);
        };
        match self.profiles.iter().position(|profile| profile == name) {
            Some(profile) => Step::Run(profile),
            None => Step::Fail(NotPicked::Denied(Denied {
                status: StatusCode::BAD_REQUEST,
                reason: None,
                message: format!("the header {} names no scheduling profile", self.header).into(),
            })),
        }
    }

    fn finish(&self, _: &Context<'_>, _: &Stages, _: &mut Extras) -> Result<usize, NotPicked> {
        Ok(0)
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let header = header_name(fields, "headerName", Some("epp-profile"));
    let default = fields
        .text("defaultProfile")
        .unwrap_or_else(|| "decode".to_owned());
    let number = build.profile(&default);
    if number.is_none() {
        fields.error("defaultProfile", format!("there is no profile `{default}`"));
    }
    let (Some(header), Some(default)) = (header, number) else {
        return Built::default();
    };
    Built::handler(HeaderProfile {
        header,
        default,
        profiles: build.profile_names().map(str::to_owned).collect(),
    })
}
