//! `disagg-profile-handler`: a request in stages on different endpoints. Decode first: decode, then encode if its decider says so, then
//! prefill if its decider says so. Prefill first: prefill, then decode, then encode. The request goes to the endpoint that decodes, with
//! the others' addresses in `x-prefiller-host-port` and `x-encoder-hosts-ports`; those count the request until its answer begins.
//! Without a prefill endpoint the decoding one does it all; without a decoding one the request fails.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pick::{NotPicked, Unavailable};
use crate::pipeline::{Context, Decider, Extras, ProfileHandler, Row, Stages, Step};
use http::{HeaderName, HeaderValue};
use std::sync::Arc;

const PREFILLER: HeaderName = HeaderName::from_static("x-prefiller-host-port");
const ENCODERS: HeaderName = HeaderName::from_static("x-encoder-hosts-ports");

/// An optional stage.
pub struct Stage {
    /// Its profile.
    pub profile: usize,
    /// Whether it runs; `None`: always.
    pub decider: Option<Arc<dyn Decider>>,
}

/// See the module's documentation.
pub struct Disagg {
    /// The profile that decodes.
    pub decode: usize,
    /// Where the prompt is computed.
    pub prefill: Option<Stage>,
    /// Where images are encoded.
    pub encode: Option<Stage>,
    /// The order of the stages.
    pub prefill_first: bool,
}

impl Disagg {
    fn due(&self, stage: Option<&Stage>, context: &Context<'_>, stages: &Stages) -> Option<usize> {
        let stage = stage?;
        if stages.of_profile(stage.profile).is_some() {
            return None;
        }
        let decode = stages.best_of(self.decode);
        let wants = stage
            .decider
            .as_ref()
            .is_none_or(|decider| decider.wants(context, decode));
        wants.then_some(stage.profile)
    }
}

impl ProfileHandler for Disagg {
    fn next(&self, context: &Context<'_>, stages: &Stages) -> Step {
        if self.prefill_first
            && stages.is_empty()
            && let Some(profile) = self.due(self.prefill.as_ref(), context, stages)
        {
            return Step::Run(profile);
        }
        if stages.of_profile(self.decode).is_none() {
            return Step::Run(self.decode);
        }
        if stages.best_of(self.decode).is_none() {
            return Step::Done;
        }
        if let Some(profile) = self.due(self.encode.as_ref(), context, stages) {
            return Step::Run(profile);
        }
        if !self.prefill_first
            && let Some(profile) = self.due(self.prefill.as_ref(), context, stages)
        {
            return Step::Run(profile);
        }
        Step::Done
    }

    fn finish(
        &self,
        context: &Context<'_>,
        stages: &Stages,
        extras: &mut Extras,
    ) -> Result<usize, NotPicked> {
        let decode = stages
            .of_profile(self.decode)
            .filter(|stage| !stages.picked(*stage).is_empty())
            .ok_or(Unavailable::Filtered)?;
        let primary = stages.best_of(self.decode);
        let address = |row: Row| context.endpoint(row).map(|e| &*e.spec().target.authority);
        let prefill = self
            .prefill
            .as_ref()
            .and_then(|stage| stages.best_of(stage.profile))
            .filter(|row| Some(*row) != primary);
        if let Some(row) = prefill
            && let Some(Ok(value)) = address(row).map(HeaderValue::from_str)
        {
            extras.request_headers.push((PREFILLER, value));
            extras.companions.push(row);
        }
        let encoders = self
            .encode
            .as_ref()
            .and_then(|stage| stages.of_profile(stage.profile))
            .map_or(&[][..], |stage| stages.picked(stage));
        let addresses: Vec<&str> = encoders.iter().filter_map(|row| address(*row)).collect();
        if !addresses.is_empty()
            && let Ok(value) = HeaderValue::from_str(&addresses.join(","))
        {
            extras.request_headers.push((ENCODERS, value));
            extras
                .companions
                .extend(encoders.iter().filter(|row| Some(**row) != primary));
        }
        Ok(decode)
    }
}

fn stage(
    fields: &mut Fields<'_>,
    build: &Build<'_>,
    key: &'static str,
    profile: &str,
) -> Option<Stage> {
    let name = fields.text(key).filter(|name| !name.is_empty())?;
    let decider = build.decider(&name);
    if decider.is_none() {
        fields.error(key, format!("`{name}` is no decider"));
    }
    let number = build.profile(profile);
    if number.is_none() {
        fields.error(key, format!("there is no profile `{profile}` to run"));
    }
    Some(Stage {
        profile: number?,
        decider: Some(decider?),
    })
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let prefill_first = fields.one_of(
        "stageOrder",
        &[("decode-first", false), ("prefill-first", true)],
        false,
    );
    let [decode, prefill, encode] = fields.object("profiles", |profiles| {
        ["decode", "prefill", "encode"]
            .map(|key| profiles.text(key).unwrap_or_else(|| key.to_owned()))
    });
    let decode_number = build.profile(&decode);
    if decode_number.is_none() {
        let path = format!("{}.profiles.decode", fields.path());
        let message = format!("there is no profile `{decode}`");
        fields.findings().error(path, message);
    }
    let (prefill_stage, encode_stage) = fields.object("deciders", |deciders| {
        if prefill_first && deciders.has("prefill") {
            deciders.error(
                "prefill",
                "is not allowed with the stage order `prefill-first`",
            );
        }
        let prefill_stage = stage(deciders, build, "prefill", &prefill);
        (prefill_stage, stage(deciders, build, "encode", &encode))
    });
    let prefill_stage = if prefill_first {
        let profile = build.profile(&prefill);
        if profile.is_none() {
            fields.error("stageOrder", format!("there is no profile `{prefill}`"));
        }
        profile.map(|profile| Stage {
            profile,
            decider: None,
        })
    } else {
        prefill_stage
    };
    let Some(decode) = decode_number else {
        return Built::default();
    };
    Built::handler(Disagg {
        decode,
        prefill: prefill_stage,
        encode: encode_stage,
        prefill_first,
    })
}

/// The old `pd-profile-handler`: prefill by the prefix-based rule with the threshold in the handler itself.
pub(crate) fn build_pd(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let decode = fields
        .text("decodeProfile")
        .unwrap_or_else(|| "decode".to_owned());
    let prefill = fields
        .text("prefillProfile")
        .unwrap_or_else(|| "prefill".to_owned());
    for (key, name) in [("decodeProfile", &decode), ("prefillProfile", &prefill)] {
        if build.profile(name).is_none() {
            fields.error(key, format!("there is no profile `{name}`"));
        }
    }
    let decider_name = fields
        .text("deciderPluginName")
        .unwrap_or_else(|| "prefix-based-pd-decider".to_owned());
    let decider = build.decider(&decider_name);
    if decider.is_none() {
        fields.error(
            "deciderPluginName",
            format!("`{decider_name}` is no decider"),
        );
    }
    for key in [
        "primaryPort",
        "prefixPluginName",
        "prefixPluginType",
        "threshold",
        "hashBlockSize",
    ] {
        if fields.raw(key).is_some() {
            fields.warn(key, "has no meaning any more: see the decider");
        }
    }
    let (Some(decode), Some(profile), Some(decider)) =
        (build.profile(&decode), build.profile(&prefill), decider)
    else {
        return Built::default();
    };
    Built::handler(Disagg {
        decode,
        prefill: Some(Stage {
            profile,
            decider: Some(decider),
        }),
        encode: None,
        prefill_first: false,
    })
}
