//! `session-id-producer`: the session's name out of a header or a cookie.

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{Attributes, ColumnId, DataProducer, ProducerInput};
use crate::plugin::labels::header_name;
use http::HeaderName;
use http::header::COOKIE;

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
    Built::producer(SessionId {
        column: build.own(Produces::Session),
        place,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::{Fixture, SHAPE};
    use http::{HeaderMap, HeaderValue};

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
