//! `decode-filter`, `prefill-filter`, `encode-filter`: by the label `llm-d.ai/role`. An endpoint without a role can decode.

use super::label::ByLabel;
use crate::config::Fields;
use crate::config::registry::{Build, Built};

const ROLE: &str = "llm-d.ai/role";

fn role(values: &[&str], allows_no_label: bool) -> ByLabel {
    let values = values.iter().map(|v| (*v).to_owned()).collect();
    ByLabel::new(ROLE.to_owned(), values, allows_no_label)
}

/// `decode-filter`.
pub fn decode() -> ByLabel {
    role(
        &["decode", "prefill-decode", "both", "encode-prefill-decode"],
        true,
    )
}

/// `prefill-filter`.
pub fn prefill() -> ByLabel {
    role(
        &[
            "prefill",
            "encode-prefill",
            "prefill-decode",
            "both",
            "encode-prefill-decode",
        ],
        false,
    )
}

/// `encode-filter`.
pub fn encode() -> ByLabel {
    role(
        &["encode", "encode-prefill", "encode-prefill-decode"],
        false,
    )
}

pub(crate) fn build_decode(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::filter(decode())
}

pub(crate) fn build_prefill(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::filter(prefill())
}

pub(crate) fn build_encode(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::filter(encode())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::Fixture;

    #[test]
    fn roles() {
        let all = [
            "decode",
            "prefill",
            "encode",
            "both",
            "prefill-decode",
            "encode-prefill",
            "encode-prefill-decode",
            "other",
        ];
        let labels: Vec<[(&str, &str); 1]> = all.iter().map(|r| [(ROLE, *r)]).collect();
        let mut labels: Vec<&[(&str, &str)]> = labels.iter().map(|l| &l[..]).collect();
        labels.push(&[]);
        let mut f = Fixture::labelled(&labels);
        assert_eq!(f.filter(&decode()), [0, 3, 4, 6, 8]);
        assert_eq!(f.filter(&prefill()), [1, 3, 4, 5, 6]);
        assert_eq!(f.filter(&encode()), [2, 5, 6]);
    }
}
