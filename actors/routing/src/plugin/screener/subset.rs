//! The subset hint of the endpoint-picker protocol: only endpoints whose address it lists. Only hosts are compared, as addresses where they
//! are addresses, so that `[::1]` and `0:0:0:0:0:0:0:1` are the same. An empty hint allows nobody.

use crate::pipeline::{Context, Row, Screener};
use std::net::IpAddr;

/// See the module's documentation.
#[derive(Debug)]
pub struct Subset;

/// The host of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host(address: &str) -> &str {
    let address = address.trim();
    if let Some(rest) = address.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    match address.split_once(':') {
        // More than one colon: an IPv6 address without brackets has no port.
        Some((_, rest)) if rest.contains(':') => address,
        Some((host, _)) => host,
        None => address,
    }
}

fn same(a: &str, b: &str) -> bool {
    a == b
        || matches!((a.parse::<IpAddr>(), b.parse::<IpAddr>()), (Ok(a), Ok(b)) if a.to_canonical() == b.to_canonical())
}

impl Screener for Subset {
    fn screen(&self, context: &Context<'_>, rows: &mut Vec<Row>) {
        let Some(subset) = context.request.subset else {
            return;
        };
        rows.retain(|row| {
            context.endpoint(*row).is_some_and(|endpoint| {
                let own = &endpoint.spec().target.host;
                subset.iter().any(|address| same(host(address), own))
            })
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::Fixture;

    #[test]
    fn hosts_of_all_spellings() {
        for (address, expected) in [
            ("10.0.0.1:8000", "10.0.0.1"),
            ("10.0.0.1", "10.0.0.1"),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("gpu-1:80", "gpu-1"),
            ("[", ""),
            ("", ""),
        ] {
            assert_eq!(host(address), expected, "{address}");
        }
        assert!(same("::1", "0:0:0:0:0:0:0:1") && same("::ffff:10.0.0.1", "10.0.0.1"));
        assert!(!same("::1", "::2") && !same("a", "b"));
    }

    #[test]
    fn nobody_else_is_left() {
        let mut f = Fixture::new(3);
        let mut screened = |subset: Option<&[&str]>| {
            let request = SchedulingRequest {
                subset,
                ..Default::default()
            };
            let mut rows = vec![0, 1, 2];
            f.with(&request, |context, _| Subset.screen(context, &mut rows));
            rows
        };
        assert_eq!(screened(None), [0, 1, 2]);
        assert_eq!(screened(Some(&["10.0.0.2:1", "10.0.0.9:8000"])), [2]);
        assert_eq!(screened(Some(&[])), [0; 0]);
    }
}
