//! `header-label-affinity-scorer`: 1 if the endpoint's label equals the request's header, else 0. The answer tells the label of the
//! endpoint that was picked, in the same header, unless told not to.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Extras, OnPicked, Row, Scorer, Stages, Tools};
use crate::plugin::labels::header_name;
use http::{HeaderName, HeaderValue};
use std::sync::Arc;

/// See the module's documentation.
#[derive(Debug)]
pub struct HeaderLabelAffinity {
    /// The header.
    pub header: HeaderName,
    /// The label.
    pub label: String,
}

impl Scorer for HeaderLabelAffinity {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        let Some(wanted) = context.request.header(&self.header) else {
            return;
        };
        for (row, score) in rows.iter().zip(scores) {
            if context.label(*row, &self.label) == Some(wanted) {
                *score = 1.0;
            }
        }
    }
}

impl OnPicked for HeaderLabelAffinity {
    fn on_picked(&self, context: &Context<'_>, _: &Stages, primary: Row, extras: &mut Extras) {
        let label = context.label(primary, &self.label);
        if let Some(Ok(value)) = label.map(HeaderValue::from_str) {
            extras.response_headers.push((self.header.clone(), value));
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    let header = header_name(fields, "headerName", None);
    let label = fields.required_text("labelKey");
    let stamp = fields.flag("stampResponseHeader", true);
    let Some(header) = header else {
        return Built::default();
    };
    let plugin = Arc::new(HeaderLabelAffinity { header, label });
    Built {
        on_picked: stamp.then(|| plugin.clone() as Arc<dyn OnPicked>),
        scorer: Some(plugin),
        ..Built::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::{Fixture, assert_near};

    #[test]
    fn likes_the_label_and_stamps_the_answer() {
        let mut f = Fixture::labelled(&[&[("slice", "a")], &[("slice", "b")], &[]]);
        let plugin = HeaderLabelAffinity {
            header: HeaderName::from_static("x-slice"),
            label: "slice".into(),
        };
        assert_near(&f.score(&plugin), &[0.0; 3]);
        let mut headers = http::HeaderMap::new();
        headers.insert("x-slice", HeaderValue::from_static("b"));
        let request = SchedulingRequest {
            headers: &headers,
            ..Default::default()
        };
        assert_near(&f.score_for(&plugin, &request), &[0.0, 1.0, 0.0]);
        let mut extras = Extras::default();
        f.with(&request, |context, _| {
            plugin.on_picked(context, &Stages::default(), 0, &mut extras);
            plugin.on_picked(context, &Stages::default(), 2, &mut extras);
        });
        assert_eq!(extras.response_headers.len(), 1);
        assert_eq!(extras.response_headers[0].1, "a");
    }
}
