//! `session-id-producer`: the session's name out of a header or a cookie. With `engineHints` the engine is told it, in `x-session-id`.

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{
    Attributes, ColumnId, Context, DataProducer, Extras, OnPicked, ProducerInput, Row, Stages,
};
use crate::plugin::labels::header_name;
use http::header::COOKIE;
use http::{HeaderName, HeaderValue};
use std::sync::Arc;

/// Where the name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A header.
    Header(HeaderName),
    /// A cookie.
    Cookie(String),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct SessionId {
    /// Where it is written.
    pub column: ColumnId,
    /// Where it is read.
    pub place: Place,
}

fn cookie<'a>(cookies: &'a str, name: &str) -> Option<&'a str> {
    cookies
        .split(';')
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(of, _)| *of == name)
        .map(|(_, value)| value.trim_matches('"'))
}

impl DataProducer for SessionId {
    fn produce(&self, input: &ProducerInput<'_>, attributes: &mut Attributes) {
        let headers = input.request.headers;
        let session = match &self.place {
            Place::Header(name) => input.request.header(name),
            Place::Cookie(name) => headers
                .get_all(COOKIE)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .find_map(|cookies| cookie(cookies, name)),
        };
        if let Some(session) = session.filter(|session| !session.is_empty()) {
            attributes.set_text(self.column, session);
        }
    }
}

/// Where engines read a session's name.
const FOR_ENGINES: HeaderName = HeaderName::from_static("x-session-id");

/// Tells the engine the session: the one in the column, else the one that the request's parser found.
struct TellEngine(ColumnId);

impl OnPicked for TellEngine {
    fn on_picked(&self, context: &Context<'_>, _: &Stages, _: Row, extras: &mut Extras) {
        let session = context
            .attributes
            .text(self.0)
            .or(context.request.session)
            .filter(|_| !context.request.headers.contains_key(FOR_ENGINES));
        if let Some(Ok(value)) = session.map(HeaderValue::from_str) {
            extras.request_headers.push((FOR_ENGINES, value));
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let cookie = fields.text("cookieName").filter(|name| !name.is_empty());
    if cookie.is_some() && fields.has("headerName") {
        fields.error("cookieName", "excludes `headerName`");
    }
    let place = match cookie {
        Some(name) => {
            fields.raw("headerName");
            Some(Place::Cookie(name))
        }
        None => header_name(fields, "headerName", Some("x-session-id")).map(Place::Header),
    };
    let Some(place) = place else {
        return Built::default();
    };
    let column = build.own(Produces::Session);
    let hints = fields.flag("engineHints", false);
    Built {
        on_picked: hints.then(|| Arc::new(TellEngine(column)) as Arc<_>),
        ..Built::producer(SessionId { column, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::{Fixture, SHAPE};
    use http::{HeaderMap, HeaderValue};

    #[test]
    fn engines_are_told_a_session_that_they_would_not_see() {
        let mut f = Fixture::new(1);
        f.attributes.set_text(0, "conv-42");
        let headers = HeaderMap::new();
        let mut told = |headers: &HeaderMap| {
            let request = SchedulingRequest {
                headers,
                ..Default::default()
            };
            f.with(&request, |context, _| {
                let mut extras = Extras::default();
                TellEngine(0).on_picked(context, &Stages::default(), 0, &mut extras);
                extras.request_headers
            })
        };
        assert_eq!(told(&headers)[0].1, "conv-42");
        let mut there = HeaderMap::new();
        there.insert(FOR_ENGINES, HeaderValue::from_static("own"));
        assert!(told(&there).is_empty());
    }

    #[test]
    fn header_or_cookie() {
        let mut headers = HeaderMap::new();
        headers.insert("x-s", HeaderValue::from_static("  abc "));
        headers.append(COOKIE, HeaderValue::from_static("a=b; sid=\"xyz\""));
        headers.append(COOKIE, HeaderValue::from_static("other=1"));
        let request = SchedulingRequest {
            headers: &headers,
            ..Default::default()
        };
        let mut f = Fixture::new(1);
        for (place, expected) in [
            (Place::Header(HeaderName::from_static("x-s")), Some("abc")),
            (Place::Header(HeaderName::from_static("x-t")), None),
            (Place::Cookie("sid".into()), Some("xyz")),
            (Place::Cookie("other".into()), Some("1")),
            (Place::Cookie("none".into()), None),
        ] {
            f.attributes.reset(SHAPE, 1);
            f.produce(
                &SessionId {
                    column: 0,
                    place: place.clone(),
                },
                &request,
            );
            assert_eq!(f.attributes.text(0), expected, "{place:?}");
        }
    }
}
