//! `header-based-testing-filter`: the endpoints whose address the header `test-epp-endpoint-selection` lists (the gateway API's
//! conformance tests). Without the header, or if it names nobody, all stay.

use super::keep;
use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Filter, Row, Tools};
use http::HeaderName;

const HEADER: HeaderName = HeaderName::from_static("test-epp-endpoint-selection");

/// See the module's documentation.
#[derive(Debug)]
pub struct TestHeader;

impl Filter for TestHeader {
    fn filter(&self, context: &Context<'_>, rows: &mut Vec<Row>, _: &mut Tools) {
        let Some(listed) = context.request.header(&HEADER) else {
            return;
        };
        keep(rows, true, |row| {
            context.endpoint(row).is_some_and(|endpoint| {
                let target = &endpoint.spec().target;
                listed
                    .split(',')
                    .map(str::trim)
                    .any(|address| address == target.host || address == target.authority)
            })
        });
    }
}

pub(crate) fn build(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::filter(TestHeader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::Fixture;
    use http::{HeaderMap, HeaderValue};

    #[test]
    fn addresses_with_and_without_port() {
        let mut f = Fixture::new(3);
        assert_eq!(f.filter(&TestHeader), [0, 1, 2]);
        for (value, expected) in [
            ("10.0.0.2, 10.0.0.0:8000", vec![0, 2]),
            ("10.0.0.1:9", vec![0, 1, 2]),
            ("", vec![0, 1, 2]),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_str(value).unwrap());
            let request = SchedulingRequest {
                headers: &headers,
                ..Default::default()
            };
            assert_eq!(f.filter_for(&TestHeader, &request), expected, "{value}");
        }
    }
}
