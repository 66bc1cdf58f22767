//! `Prefer: if-available` (RFC 7240): the client wants an answer only from an endpoint that has some of the prompt cached, and asks again without
//! the preference if there is none.

use super::Row;
use super::attributes::Shape;
use super::plugin::Context;
use crate::pick::Denied;
use http::{HeaderName, StatusCode};

const PREFER: HeaderName = HeaderName::from_static("prefer");

fn prefers_available(value: &str) -> bool {
    value.split(',').any(|preference| {
        let name = preference.split([';', '=']).next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case("if-available")
    })
}

/// # Errors
/// 412 if the client wants a cached prompt and the picked endpoint has none of it. Where nothing knows what is cached, nothing is
/// refused.
pub(super) fn check(context: &Context<'_>, shape: Shape, primary: Row) -> Result<(), Denied> {
    let headers = context.request.headers;
    if shape.prefix == 0 || !headers.contains_key(PREFER) {
        return Ok(());
    }
    let wanted = headers
        .get_all(PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(prefers_available);
    let cached = (0..shape.prefix)
        .filter_map(|column| context.attributes.prefix(column))
        .any(|column| column.matched(primary) > 0);
    if wanted && !cached {
        return Err(Denied {
            status: StatusCode::PRECONDITION_FAILED,
            reason: None,
            message: "no endpoint that would be picked has any of the prompt cached".into(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_a_list_with_parameters() {
        for (value, expected) in [
            ("if-available", true),
            ("wait=10, If-Available; x=y", true),
            ("return=minimal", false),
            ("if-available-now", false),
            ("", false),
        ] {
            assert_eq!(prefers_available(value), expected, "{value}");
        }
    }
}
