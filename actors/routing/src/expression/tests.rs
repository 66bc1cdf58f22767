//! Each operator, each refusal, and random expressions against a plain evaluation.

use super::*;
use proptest::prelude::*;

const USAGE: ReportedUsage = ReportedUsage {
    prompt: Some(100),
    completion: Some(20),
    cached: Some(64),
};
const NOTHING: ReportedUsage = ReportedUsage {
    prompt: None,
    completion: None,
    cached: None,
};

fn number(text: &str) -> Option<f64> {
    Expression::parse(text, Kind::Number)
        .unwrap()
        .number(&USAGE)
}

fn truth(text: &str, usage: &ReportedUsage) -> bool {
    Expression::parse(text, Kind::Truth).unwrap().is_true(usage)
}

#[test]
fn numbers() {
    for (text, expected) in [
        ("usage.prompt_tokens + usage.completion_tokens\n", 120.0),
        ("usage.total_tokens", 120.0),
        ("1 + 2 * 3 - 4 / 8", 6.5),
        ("(1 + 2) * 3", 9.0),
        ("10 - 3 - 2", 5.0),
        ("64 / 4 / 2", 8.0),
        ("-2 * -3", 6.0),
        ("--2", 2.0),
        ("1.5e2 + .5 + 2u", 152.5),
        ("int(usage.prompt_tokens / 3)", 33.0),
        ("int(-1.5)", -1.0),
        ("double(3)", 3.0),
        (
            "usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens",
            36.0,
        ),
        (r#"usage["prompt_token_details"]['cached_tokens']"#, 64.0),
        ("has(usage.prompt_tokens) ? usage.prompt_tokens : 0", 100.0),
        ("false ? 1 : true ? 2 : 3", 2.0),
        ("usage.prompt_tokens > 99 && !false ? 1 : 0", 1.0),
    ] {
        assert_eq!(number(text), Some(expected), "{text}");
    }
    for text in ["1 / 0", "usage.other", "0 / 0", "true ? usage.other : 1"] {
        assert_eq!(number(text), None, "{text}");
    }
}

#[test]
fn truths_with_and_without_usage() {
    for (text, with, without) in [
        ("has(usage.prompt_tokens)", true, false),
        ("has(usage.prompt_tokens_details)", true, false),
        ("has(usage.other)", false, false),
        ("usage.prompt_tokens == 100", true, false),
        ("usage.prompt_tokens != 100", false, false),
        ("usage.prompt_tokens >= 100.5", false, false),
        ("usage.prompt_tokens <= 100", true, false),
        ("1 < 2 == true", true, true),
        ("true != false", true, true),
        // What decides need not wait for what cannot be told, on either side.
        ("usage.other > 1 || true", true, true),
        ("!(usage.other > 1 && false)", true, true),
        ("usage.other > 1 || false", false, false),
        ("true || false && false", true, true),
        ("false || true", true, true),
        ("true && false", false, false),
    ] {
        assert_eq!(truth(text, &USAGE), with, "{text}");
        assert_eq!(truth(text, &NOTHING), without, "{text}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let said = |text: &str, kind| Expression::parse(text, kind).unwrap_err().to_string();
    for (text, part) in [
        ("", "missing at character 1"),
        ("1 +", "missing"),
        ("1 2", "left over"),
        ("(1", "`)` is missing"),
        ("usage", "takes `.NAME`"),
        ("usage.", "a name is missing"),
        ("usage[1]", "quotation marks"),
        ("usage[\"a", "not closed"),
        ("usage.prompt_tokens_details", "an object"),
        ("request.path", "`request` is not known"),
        ("[1, 2].map(x, x)", "missing"),
        ("true", "gives true or false"),
        ("true + 1", "`+` takes a number"),
        ("1 && true ? 1 : 2", "`&&` takes true or false"),
        ("1 ? 2 : 3", "`?` takes true or false"),
        ("true ? 1 : false", "one type"),
        ("true == 1 ? 1 : 2", "`==` takes"),
        ("!1 ? 1 : 2", "`!` takes"),
        ("-true", "`-` takes"),
        ("int(true)", "takes a number"),
        ("has(1)", "`has` takes"),
        ("0x10", "is no number"),
        ("1e999", "is no number"),
        ("inf", "`inf` is not known"),
        ("1 % 2", "left over"),
        ("\u{fc}", "missing"),
    ] {
        let said = said(text, Kind::Number);
        assert!(said.contains(part), "{text}: {said}");
    }
    assert!(said("1", Kind::Truth).contains("gives a number"));
    assert!(said("\u{e4}\u{e4}", Kind::Truth).contains("character 1"));
    assert!(said(&"1 + ".repeat(300), Kind::Number).contains("256 parts"));
    assert!(said(&"(".repeat(1000), Kind::Number).contains("nested"));
    assert!(said(&"-".repeat(1000), Kind::Number).contains("nested"));
    assert!(said(&"!".repeat(1000), Kind::Truth).contains("nested"));
    assert!(said(&"true ? 1 : ".repeat(200), Kind::Number).contains("nested"));
    assert!(said(&" ".repeat(5000), Kind::Number).contains("longer"));
}

#[test]
fn names_that_no_usage_has_are_told() {
    let parsed = Expression::parse(
        "has(usage.cost) ? usage.cost.total : usage.total_tokens",
        Kind::Number,
    )
    .unwrap();
    assert_eq!(parsed.unknown(), ["cost", "cost.total"]);
    assert_eq!(parsed.number(&USAGE), Some(120.0));
}

/// An expression's text and what it gives.
fn sums() -> impl Strategy<Value = (String, Option<f64>)> {
    let leaf = prop_oneof![
        (0u32..1000).prop_map(|n| (n.to_string(), Some(f64::from(n)))),
        Just(("usage.prompt_tokens".to_owned(), Some(100.0))),
        Just(("usage.nothing".to_owned(), None)),
    ];
    leaf.prop_recursive(5, 40, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone(), 0usize..4).prop_map(|((a, x), (b, y), operator)| {
                let sign = ["+", "-", "*", "/"][operator];
                let result = x.zip(y).map(|(x, y)| match operator {
                    0 => x + y,
                    1 => x - y,
                    2 => x * y,
                    _ => x / y,
                });
                (format!("({a}) {sign} ({b})"), result)
            }),
            (inner.clone(), inner.clone(), inner).prop_map(|((a, x), (b, y), (c, z))| {
                let result = x.zip(y).and_then(|(x, y)| if x < y { z } else { x.into() });
                (format!("({a}) < ({b}) ? ({c}) : ({a})"), result)
            }),
        ]
    })
}

proptest! {
    #[test]
    fn random_expressions_give_what_they_say((text, expected) in sums()) {
        match Expression::parse(&text, Kind::Number) {
            Ok(parsed) => prop_assert_eq!(
                parsed.number(&USAGE),
                expected.filter(|n| n.is_finite()),
                "{}", text
            ),
            Err(error) => prop_assert!(
                error.to_string().contains("parts") || error.to_string().contains("longer"),
                "{}: {}", text, error
            ),
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[ -~\u{e4}\u{4e00}]{0,60}|([(!-]|usage\\.|has\\(|true|\\?|:|\\[\"|[0-9.e]){0,40}") {
        for kind in [Kind::Number, Kind::Truth] {
            if let Ok(parsed) = Expression::parse(&text, kind) {
                parsed.number(&USAGE);
                parsed.is_true(&NOTHING);
            }
        }
    }
}
