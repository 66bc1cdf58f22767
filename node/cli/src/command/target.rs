//! Which resources a command is about: `KIND NAME...` or `KIND/NAME...`.

use quorate_proto::v1::Kind;

use crate::{Exit, Failure, kind};

/// What the arguments name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// `all`
    All,
    /// A kind without names.
    Kind(Kind),
    /// Resources, in the order given.
    Names(Vec<(Kind, String)>),
}

/// Reads `all`, `KIND`, `KIND NAME...` or `KIND/NAME...`.
pub(super) fn parse(words: &[String]) -> Result<Target, Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    let Some((first, rest)) = words.split_first() else {
        return Err(usage("name a kind, for example pools".to_owned()));
    };
    if first.contains('/') {
        let names = words.iter().map(|word| match word.split_once('/') {
            Some((kind, name)) if !name.is_empty() => Ok((kind::parse(kind)?, name.to_owned())),
            _ => Err(usage(format!(
                "{word:?}: expected KIND/NAME, like the words before it"
            ))),
        });
        return Ok(Target::Names(names.collect::<Result<_, _>>()?));
    }
    if first == "all" {
        return if rest.is_empty() {
            Ok(Target::All)
        } else {
            Err(usage("all takes no names".to_owned()))
        };
    }
    let kind = kind::parse(first)?;
    if rest.is_empty() {
        return Ok(Target::Kind(kind));
    }
    if let Some(word) = rest
        .iter()
        .find(|word| word.is_empty() || word.contains('/'))
    {
        return Err(usage(format!(
            "{word:?} is not a name of a {}",
            kind::singular(kind)
        )));
    }
    Ok(Target::Names(
        rest.iter().map(|name| (kind, name.clone())).collect(),
    ))
}

/// Like [`parse`], for commands that need at least one name.
pub(super) fn parse_names(words: &[String]) -> Result<Vec<(Kind, String)>, Failure> {
    match parse(words)? {
        Target::Names(names) => Ok(names),
        Target::Kind(kind) => Err(Failure::new(
            Exit::Usage,
            format!("which {}? name it", kind::singular(kind)),
        )),
        Target::All => Err(Failure::new(
            Exit::Usage,
            "all is not possible here: name the resources",
        )),
    }
}

/// Reads `key=value`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn targets() {
        let pool = |name: &str| (Kind::Pool, name.to_owned());
        for (text, expected) in [
            ("all", Target::All),
            ("po", Target::Kind(Kind::Pool)),
            ("pools a b", Target::Names(vec![pool("a"), pool("b")])),
            (
                "pool/a endpoint/b",
                Target::Names(vec![pool("a"), (Kind::Endpoint, "b".to_owned())]),
            ),
        ] {
            assert_eq!(
                parse(&words(text)).unwrap_or_else(|f| panic!("{text}: {f}")),
                expected
            );
        }
        for text in [
            "", "nothing", "pool/", "pool/a b", "all a", "pool a/b", "pool  a",
        ] {
            assert_eq!(
                parse(&words(text)).map_err(|f| f.exit),
                Err(Exit::Usage),
                "{text:?}"
            );
        }
        assert_eq!(
            parse_names(&words("pools")).map_err(|f| f.exit),
            Err(Exit::Usage)
        );
    }
}
