//! Reading an expression: recursive descent over its text, types checked on the way.

use super::{Expression, Field, Kind, Node, Operator};

/// Longest text, in bytes.
const MAX_LENGTH: usize = 4096;
/// Deepest nesting.
const MAX_DEPTH: usize = 32;
/// Most parts: literals, fields and operators.
const MAX_NODES: usize = 256;

/// Why a text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at character {at}")]
pub struct ExpressionError {
    /// What is wrong.
    what: String,
    /// Where, from 1.
    at: usize,
}

pub(super) fn parse(text: &str, wanted: Kind) -> Result<Expression, ExpressionError> {
    let mut parser = Parser {
        text,
        at: 0,
        depth: 0,
        nodes: 0,
        unknown: Vec::new(),
    };
    if text.len() > MAX_LENGTH {
        return Err(parser.error(format!("it is longer than {MAX_LENGTH} bytes")));
    }
    let (node, kind) = parser.choice()?;
    parser.space();
    if parser.at < text.len() {
        return Err(parser.error("something is left over"));
    }
    if kind != wanted {
        parser.at = 0;
        return Err(parser.error(format!("{}, and has to give {}", gives(kind), a(wanted))));
    }
    Ok(Expression {
        node,
        unknown: parser.unknown,
    })
}

fn a(kind: Kind) -> &'static str {
    match kind {
        Kind::Number => "a number",
        Kind::Truth => "true or false",
    }
}

fn gives(kind: Kind) -> String {
    format!("the expression gives {}", a(kind))
}

type Typed = (Node, Kind);

struct Parser<'a> {
    text: &'a str,
    /// In bytes; always between two characters.
    at: usize,
    depth: usize,
    nodes: usize,
    unknown: Vec<String>,
}

/// Operators of one precedence; longer spellings first.
type Level = &'static [(&'static str, Operator)];
const OR: Level = &[("||", Operator::Or)];
const AND: Level = &[("&&", Operator::And)];
const RELATION: Level = &[
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("<", Operator::Less),
    (">", Operator::Greater),
];
const SUM: Level = &[("+", Operator::Add), ("-", Operator::Subtract)];
const PRODUCT: Level = &[("*", Operator::Multiply), ("/", Operator::Divide)];
/// From the one that binds least.
const LEVELS: [Level; 5] = [OR, AND, RELATION, SUM, PRODUCT];

impl<'a> Parser<'a> {
    fn error(&self, what: impl Into<String>) -> ExpressionError {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        ExpressionError {
            what: what.into(),
            at: before.chars().count() + 1,
        }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Takes a sign if it is next.
    fn take(&mut self, sign: &str) -> bool {
        self.space();
        let is_next = self.rest().starts_with(sign);
        if is_next {
            self.at += sign.len();
        }
        is_next
    }

    fn expect(&mut self, sign: &str) -> Result<(), ExpressionError> {
        if self.take(sign) {
            return Ok(());
        }
        Err(self.error(format!("`{sign}` is missing")))
    }

    fn node(&mut self, node: Node) -> Result<Node, ExpressionError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(self.error(format!("it has more than {MAX_NODES} parts")));
        }
        Ok(node)
    }

    fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, ExpressionError>,
    ) -> Result<T, ExpressionError> {
        if self.depth == MAX_DEPTH {
            return Err(self.error(format!("it is nested more than {MAX_DEPTH} deep")));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn wanted(&self, of: &Typed, wanted: Kind, whose: &str) -> Result<(), ExpressionError> {
        if of.1 == wanted {
            return Ok(());
        }
        Err(self.error(format!("{whose} takes {}", a(wanted))))
    }

    fn choice(&mut self) -> Result<Typed, ExpressionError> {
        let condition = self.level(0)?;
        if !self.take("?") {
            return Ok(condition);
        }
        self.wanted(&condition, Kind::Truth, "`?`")?;
        let (yes, no) = self.nested(|parser| {
            let yes = parser.choice()?;
            parser.expect(":")?;
            Ok((yes, parser.choice()?))
        })?;
        if yes.1 != no.1 {
            return Err(self.error("both sides of `:` have to be of one type"));
        }
        let kind = yes.1;
        let node = self.node(Node::If(Box::new((condition.0, yes.0, no.0))))?;
        Ok((node, kind))
    }

    fn level(&mut self, number: usize) -> Result<Typed, ExpressionError> {
        let Some(level) = LEVELS.get(number) else {
            return self.unary();
        };
        let mut left = self.level(number + 1)?;
        while let Some((sign, operator)) = level.iter().find(|(sign, _)| self.take(sign)) {
            let right = self.level(number + 1)?;
            let whose = format!("`{sign}`");
            let kind = match operator {
                Operator::And | Operator::Or => {
                    self.wanted(&left, Kind::Truth, &whose)?;
                    self.wanted(&right, Kind::Truth, &whose)?;
                    Kind::Truth
                }
                Operator::Equal | Operator::NotEqual => {
                    self.wanted(&right, left.1, &whose)?;
                    Kind::Truth
                }
                _ => {
                    self.wanted(&left, Kind::Number, &whose)?;
                    self.wanted(&right, Kind::Number, &whose)?;
                    match operator {
                        Operator::Add
                        | Operator::Subtract
                        | Operator::Multiply
                        | Operator::Divide => Kind::Number,
                        _ => Kind::Truth,
                    }
                }
            };
            let node = self.node(Node::Binary(*operator, Box::new((left.0, right.0))))?;
            left = (node, kind);
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Typed, ExpressionError> {
        if self.take("!") {
            let of = self.nested(Self::unary)?;
            self.wanted(&of, Kind::Truth, "`!`")?;
            return Ok((self.node(Node::Not(Box::new(of.0)))?, Kind::Truth));
        }
        if self.take("-") {
            let of = self.nested(Self::unary)?;
            self.wanted(&of, Kind::Number, "`-`")?;
            return Ok((self.node(Node::Negate(Box::new(of.0)))?, Kind::Number));
        }
        self.primary()
    }

    fn primary(&mut self) -> Result<Typed, ExpressionError> {
        if self.take("(") {
            let inner = self.nested(Self::choice)?;
            self.expect(")")?;
            return Ok(inner);
        }
        self.space();
        if self
            .rest()
            .starts_with(|c: char| c.is_ascii_digit() || c == '.')
        {
            return self.number();
        }
        let begin = self.at;
        match self.name() {
            Some("true") => Ok((self.node(Node::Truth(true))?, Kind::Truth)),
            Some("false") => Ok((self.node(Node::Truth(false))?, Kind::Truth)),
            Some("usage") => {
                let field = self.field()?;
                if field == Field::Details {
                    return Err(self.error("this is an object, not a number"));
                }
                Ok((self.node(Node::Field(field))?, Kind::Number))
            }
            Some("has") => {
                self.expect("(")?;
                self.space();
                if self.name() != Some("usage") {
                    return Err(self.error("`has` takes `usage.NAME`"));
                }
                let field = self.field()?;
                self.expect(")")?;
                Ok((self.node(Node::Has(field))?, Kind::Truth))
            }
            Some(function @ ("int" | "double")) => {
                let truncates = function == "int";
                self.expect("(")?;
                let of = self.nested(Self::choice)?;
                self.expect(")")?;
                self.wanted(&of, Kind::Number, "this function")?;
                Ok(match truncates {
                    true => (self.node(Node::Truncate(Box::new(of.0)))?, Kind::Number),
                    false => of,
                })
            }
            Some(other) => {
                let what = format!(
                    "`{other}` is not known (there are `usage`, `has`, `int`, `double`, `true`, `false`)"
                );
                self.at = begin;
                Err(self.error(what))
            }
            None => Err(self.error("a number, a name or `(` is missing")),
        }
    }

    fn number(&mut self) -> Result<Typed, ExpressionError> {
        let rest = self.rest();
        let bytes = rest.as_bytes();
        let mut length = 0;
        while let Some(byte) = bytes.get(length) {
            let exponent_sign = matches!(byte, b'+' | b'-')
                && length > 0
                && matches!(bytes.get(length - 1), Some(b'e' | b'E'));
            if !(byte.is_ascii_alphanumeric() || *byte == b'.' || exponent_sign) {
                break;
            }
            length += 1;
        }
        let written = rest.get(..length).unwrap_or_default();
        let number = written.strip_suffix(['u', 'U']).unwrap_or(written);
        let is_number = number
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
        match number.parse::<f64>() {
            Ok(value) if is_number && value.is_finite() => {
                self.at += length;
                Ok((self.node(Node::Number(value))?, Kind::Number))
            }
            _ => Err(self.error(format!("`{written}` is no number"))),
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        let begin = self.at;
        let rest = self.rest();
        let length = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        self.at += length;
        self.text
            .get(begin..self.at)
            .filter(|name| name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'))
    }

    /// `.a.b` or `["a"]["b"]` behind `usage`.
    fn field(&mut self) -> Result<Field, ExpressionError> {
        let mut path = self
            .member()?
            .ok_or_else(|| self.error("`usage` takes `.NAME`"))?;
        while let Some(more) = self.member()? {
            path.push('.');
            path.push_str(&more);
        }
        Ok(match path.as_str() {
            "prompt_tokens" | "input_tokens" => Field::Prompt,
            "completion_tokens" | "output_tokens" => Field::Completion,
            "total_tokens" => Field::Total,
            "prompt_tokens_details" | "prompt_token_details" | "input_tokens_details" => {
                Field::Details
            }
            "prompt_tokens_details.cached_tokens"
            | "prompt_token_details.cached_tokens"
            | "input_tokens_details.cached_tokens"
            | "cache_read_input_tokens" => Field::Cached,
            _ => {
                self.unknown.push(path);
                Field::Unknown
            }
        })
    }

    fn member(&mut self) -> Result<Option<String>, ExpressionError> {
        if self.take(".") {
            self.space();
            let name = self.name().map(str::to_owned);
            return match name {
                Some(name) => Ok(Some(name)),
                None => Err(self.error("a name is missing")),
            };
        }
        if !self.take("[") {
            return Ok(None);
        }
        self.space();
        let quote = match self.rest().chars().next() {
            Some(quote @ ('"' | '\'')) => quote,
            _ => return Err(self.error("a name in quotation marks is missing")),
        };
        self.at += 1;
        let Some(length) = self.rest().find(quote) else {
            return Err(self.error("the quotation mark is not closed"));
        };
        let name = self.rest().get(..length).unwrap_or_default().to_owned();
        self.at += length + 1;
        self.expect("]")?;
        Ok(Some(name))
    }
}
