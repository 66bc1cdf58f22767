//! Small expressions over the usage of a request, as operators write them in `request-attribute-reporter`: the part of the Common
//! Expression Language (CEL) that says something about a handful of numbers.
//!
//! ```text
//! usage.prompt_tokens + 2 * usage.completion_tokens
//! has(usage.total_tokens) && usage.total_tokens > 1000 ? usage.total_tokens : 0
//! ```
//!
//! There are numbers and truth values; `usage.NAME` and `usage["NAME"]`; `has()`, `int()`, `double()`; `+ - * /`, the six
//! comparisons, `! && ||` and `?:`, with CEL's precedence. All numbers are doubles, as usage is in the reference's CEL environment;
//! unlike there, a literal without a fraction mixes with them. Types are checked when an expression is read. There is nothing to
//! loop with, and length, nesting and number of parts are bounded, so that evaluation takes a bounded time and no allocation.

mod parse;

pub use parse::ExpressionError;

/// Tokens of one request, as far as the engine said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportedUsage {
    /// Of the prompt.
    pub prompt: Option<u64>,
    /// Generated.
    pub completion: Option<u64>,
    /// Of the prompt, found in a cache.
    pub cached: Option<u64>,
}

/// What an expression gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number.
    Number,
    /// True or false.
    Truth,
}

/// An expression that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    node: Node,
    /// Names behind `usage.` that no engine's usage has.
    unknown: Vec<String>,
}

/// A member of `usage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Prompt,
    Completion,
    Total,
    Cached,
    /// The object around the cached tokens.
    Details,
    /// One that is never there.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
    And,
    Or,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Number(f64),
    Truth(bool),
    Field(Field),
    Has(Field),
    Not(Box<Node>),
    Negate(Box<Node>),
    Truncate(Box<Node>),
    Binary(Operator, Box<(Node, Node)>),
    If(Box<(Node, Node, Node)>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Number(f64),
    Truth(bool),
}

impl Expression {
    /// Reads an expression that has to give `kind`.
    ///
    /// # Errors
    /// [`ExpressionError`] says what is wrong and where.
    pub fn parse(text: &str, kind: Kind) -> Result<Self, ExpressionError> {
        parse::parse(text, kind)
    }

    /// Names that it uses and that no engine's usage has: they count as absent.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }

    /// The number that it gives; `None`: something that it needs is absent, it divides by zero, or it gives no number.
    pub fn number(&self, usage: &ReportedUsage) -> Option<f64> {
        match self.node.value(usage)? {
            Value::Number(number) => Some(number).filter(|number| number.is_finite()),
            Value::Truth(_) => None,
        }
    }

    /// Whether it is true; what cannot be told is not.
    pub fn is_true(&self, usage: &ReportedUsage) -> bool {
        self.node.truth(usage) == Some(true)
    }
}

impl Field {
    fn of(self, usage: &ReportedUsage) -> Option<f64> {
        let number = match self {
            Self::Prompt => usage.prompt?,
            Self::Completion => usage.completion?,
            Self::Total => usage.prompt?.saturating_add(usage.completion.unwrap_or(0)),
            Self::Cached => usage.cached?,
            Self::Details | Self::Unknown => return None,
        };
        Some(number as f64)
    }

    fn is_there(self, usage: &ReportedUsage) -> bool {
        match self {
            Self::Details => usage.cached.is_some(),
            field => field.of(usage).is_some(),
        }
    }
}

impl Node {
    fn value(&self, usage: &ReportedUsage) -> Option<Value> {
        Some(match self {
            Self::Number(number) => Value::Number(*number),
            Self::Truth(truth) => Value::Truth(*truth),
            Self::Field(field) => Value::Number(field.of(usage)?),
            Self::Has(field) => Value::Truth(field.is_there(usage)),
            Self::Not(of) => Value::Truth(!of.truth(usage)?),
            Self::Negate(of) => Value::Number(-of.number(usage)?),
            Self::Truncate(of) => Value::Number(of.number(usage)?.trunc()),
            Self::Binary(operator, of) => return operator.value(&of.0, &of.1, usage),
            Self::If(of) => {
                let (condition, yes, no) = &**of;
                let chosen = if condition.truth(usage)? { yes } else { no };
                return chosen.value(usage);
            }
        })
    }

    fn number(&self, usage: &ReportedUsage) -> Option<f64> {
        match self.value(usage)? {
            Value::Number(number) => Some(number),
            Value::Truth(_) => None,
        }
    }

    fn truth(&self, usage: &ReportedUsage) -> Option<bool> {
        match self.value(usage)? {
            Value::Truth(truth) => Some(truth),
            Value::Number(_) => None,
        }
    }
}

impl Operator {
    fn value(self, left: &Node, right: &Node, usage: &ReportedUsage) -> Option<Value> {
        // One side is enough where it decides, even if the other cannot be told.
        if matches!(self, Self::And | Self::Or) {
            let decides = self == Self::Or;
            let sides = (left.truth(usage), right.truth(usage));
            return match sides {
                (Some(side), _) | (_, Some(side)) if side == decides => Some(Value::Truth(decides)),
                (Some(_), Some(_)) => Some(Value::Truth(!decides)),
                _ => None,
            };
        }
        if matches!(self, Self::Equal | Self::NotEqual) {
            let equal = left.value(usage)? == right.value(usage)?;
            return Some(Value::Truth(equal == (self == Self::Equal)));
        }
        let (a, b) = (left.number(usage)?, right.number(usage)?);
        Some(match self {
            Self::Add => Value::Number(a + b),
            Self::Subtract => Value::Number(a - b),
            Self::Multiply => Value::Number(a * b),
            Self::Divide => Value::Number(a / b),
            Self::Less => Value::Truth(a < b),
            Self::LessOrEqual => Value::Truth(a <= b),
            Self::Greater => Value::Truth(a > b),
            Self::GreaterOrEqual => Value::Truth(a >= b),
            Self::Equal | Self::NotEqual | Self::And | Self::Or => return None,
        })
    }
}

#[cfg(test)]
mod tests;
