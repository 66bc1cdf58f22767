use super::*;
use crate::pipeline::testing::Fixture;
use crate::pipeline::{Filter, SchedulingRequest, Scorer};
use crate::plugin::filter::session::SessionFilter;
use crate::plugin::scorer::session::SessionScorer;
use http::HeaderMap;
use std::sync::Arc;

fn headers(name: &'static str, value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(name, HeaderValue::from_str(value).unwrap());
    headers
}

fn picked(f: &mut Fixture, plugin: &SessionAffinity, headers: &HeaderMap, row: Row) -> Extras {
    let request = SchedulingRequest {
        headers,
        ..Default::default()
    };
    let mut extras = Extras::default();
    f.with(&request, |context, _| {
        plugin.on_picked(context, &Stages::default(), row, &mut extras);
    });
    extras
}

fn both(
    f: &mut Fixture,
    plugin: &Arc<SessionAffinity>,
    headers: &HeaderMap,
) -> (Vec<Row>, Vec<f64>) {
    let request = SchedulingRequest {
        headers,
        ..Default::default()
    };
    let filter: &dyn Filter = &SessionFilter(Arc::clone(plugin));
    let scorer: &dyn Scorer = &SessionScorer(Arc::clone(plugin));
    (
        f.filter_for(filter, &request),
        f.score_for(scorer, &request),
    )
}

#[test]
fn the_client_carries_the_endpoint() {
    let header = HeaderName::from_static("x-session-token");
    let plugin = Arc::new(SessionAffinity {
        strategy: Strategy::EncodedEndpoint(header),
        profile: None,
    });
    let mut f = Fixture::new(3);
    let everyone = (vec![0, 1, 2], vec![0.0; 3]);
    assert_eq!(both(&mut f, &plugin, &HeaderMap::new()), everyone);
    let extras = picked(&mut f, &plugin, &HeaderMap::new(), 1);
    let token = extras.response_headers[0].1.to_str().unwrap().to_owned();
    assert_eq!(
        both(&mut f, &plugin, &headers("x-session-token", &token)),
        (vec![1], vec![0.0, 1.0, 0.0])
    );
    // As llm-d writes it, as nobody writes it, and of an endpoint that is gone.
    let token = STANDARD.encode("some-namespace/e2");
    assert_eq!(
        both(&mut f, &plugin, &headers("x-session-token", &token)).0,
        [2]
    );
    for bad in ["%%%", "AAAA", &STANDARD.encode("default/gone")] {
        assert_eq!(
            both(&mut f, &plugin, &headers("x-session-token", bad)),
            everyone
        );
    }
}

#[test]
fn the_router_remembers_the_session() {
    let plugin = Arc::new(SessionAffinity {
        strategy: Strategy::SessionId(
            vec![
                Source::Header(HeaderName::from_static("x-session-id")),
                Source::Attribute(Some(0)),
            ],
            Bindings::new(Duration::from_secs(300), Duration::from_secs(10)),
        ),
        profile: None,
    });
    let mut f = Fixture::new(3);
    let s = headers("x-session-id", "abc");
    assert_eq!(both(&mut f, &plugin, &s).0, [0, 1, 2]);
    assert!(picked(&mut f, &plugin, &s, 2).response_headers.is_empty());
    assert_eq!(both(&mut f, &plugin, &s), (vec![2], vec![0.0, 0.0, 1.0]));
    // Picked elsewhere while the bound one is there: the binding stays.
    picked(&mut f, &plugin, &s, 0);
    assert_eq!(both(&mut f, &plugin, &s).0, [2]);
    f.endpoints[2].set_draining(true);
    picked(&mut f, &plugin, &s, 0);
    assert_eq!(both(&mut f, &plugin, &s).0, [0]);
    // The attribute counts where the header is absent.
    f.attributes.set_text(0, "abc");
    assert_eq!(both(&mut f, &plugin, &HeaderMap::new()).0, [0]);
    f.now += 301_000;
    assert_eq!(both(&mut f, &plugin, &s).0, [0, 1, 2]);
}
