//! A chat template: rendered as `transformers` renders it, and never for long.
//!
//! Fuel bounds the steps, the recursion limit the depth of macros, and the output is cut off at a size: a template or a request
//! that goes beyond is refused, the router goes on.

use super::{ContentFormat, TokenError, clock, content, python};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use std::io;

/// What one rendering may cost.
#[derive(Clone, Copy, Debug)]
pub struct TemplateLimits {
    /// Steps of the template's machine.
    pub fuel: u64,
    /// Macros inside each other.
    pub recursion: usize,
    /// Bytes of output.
    pub output: usize,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        Self {
            fuel: 5_000_000,
            recursion: 100,
            output: 16 << 20,
        }
    }
}

/// A template that has been read.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    format: ContentFormat,
    limits: TemplateLimits,
    uses_clock: bool,
}

const NAME: &str = "chat";
/// Bytes of memory that a rendering begins with: most need no more.
const COMMON_OUTPUT: usize = 16 << 10;

impl ChatTemplate {
    /// Reads a template. The form of contents is found from its syntax tree.
    ///
    /// # Errors
    /// [`TokenError::Template`] where it has a mistake.
    pub fn new(source: &str, limits: TemplateLimits) -> Result<Self, TokenError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(refused)?;
        environment.set_syntax(syntax.clone());
        environment.set_fuel(Some(limits.fuel));
        environment.set_recursion_limit(limits.recursion);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_formatter(|out, _, value| {
            if let Some(text) = value.as_str() {
                return out.write_str(text).map_err(Error::from);
            }
            let mut text = String::new();
            python::print(value, &mut text);
            out.write_str(&text).map_err(Error::from)
        });
        environment.add_filter("tojson", |value: &Value, options| {
            python::tojson(value, options)
        });
        environment.add_function("raise_exception", |what: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, what))
        });
        environment.add_function("strftime_now", |pattern: &str| {
            clock::strftime(pattern, clock::now())
        });
        let uses_clock = source.contains("strftime_now");
        let source = without_generation(source);
        let format = content::format(&source, syntax);
        environment
            .add_template_owned(NAME, source)
            .map_err(refused)?;
        Ok(Self {
            environment,
            format,
            limits,
            uses_clock,
        })
    }

    /// The form in which it wants the contents of messages.
    pub fn content_format(&self) -> ContentFormat {
        self.format
    }

    /// It names the date.
    pub(super) fn uses_clock(&self) -> bool {
        self.uses_clock
    }

    /// The prompt that it makes of `variables` (a map).
    ///
    /// # Errors
    /// [`TokenError::Template`]: it raised an exception, has a mistake, or went beyond its limits.
    pub fn render(&self, variables: Value) -> Result<String, TokenError> {
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let mut out = Bounded {
            bytes: Vec::with_capacity(COMMON_OUTPUT.min(self.limits.output)),
            limit: self.limits.output,
        };
        template
            .render_captured_to(variables, &mut out)
            .map_err(refused)?;
        String::from_utf8(out.bytes).map_err(|e| TokenError::Template(e.to_string()))
    }
}

fn refused(error: Error) -> TokenError {
    let what = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.to_string(),
    };
    TokenError::Template(what)
}

/// Takes as much as it may.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit.saturating_sub(self.bytes.len()) {
            return Err(io::Error::other("the output is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The template with `{% generation %}` and its end replaced by blocks that do nothing: they mark what a model wrote, for
/// training. A block of the same kind keeps what they say of white space.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        // `{%}` is no tag: its percent sign cannot be both.
        let Some((inside, after)) = tag.strip_prefix("{%").and_then(|tag| tag.split_once("%}"))
        else {
            rest = tag;
            break;
        };
        let tag = &tag[..tag.len() - after.len()];
        let word = inside.trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, TokenError> {
        let limits = TemplateLimits {
            fuel: 20_000,
            recursion: 20,
            output: 1000,
        };
        ChatTemplate::new(source, limits)?.render(serde_json::from_str("{\"x\":[1,2]}").unwrap())
    }

    #[test]
    fn limits_hold() {
        let endless = "{% for a in range(1000) %}{% for b in range(1000) %}{% set c = a %}{% endfor %}{% endfor %}";
        let deep = "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}";
        let long = "{% for a in range(300) %}aaaaaaaaaa{% endfor %}";
        for source in [endless, deep, long] {
            assert!(
                matches!(render(source), Err(TokenError::Template(_))),
                "{source}"
            );
        }
        assert_eq!(
            render("{{ raise_exception('no') }}"),
            Err(TokenError::Template("no".into()))
        );
        assert!(render("{% if %}").is_err());
    }

    #[test]
    fn a_tag_that_is_none_is_an_error() {
        for source in [
            "{%}",
            "{% if x %}{%}",
            "{%%}",
            "{%",
            "{%-%}",
            "{% generation",
        ] {
            assert!(render(source).is_err(), "{source}");
        }
    }

    #[test]
    fn what_templates_use() {
        assert_eq!(
            render("{% generation -%}  a{%- endgeneration %}{{ none }}{{ true }}{{ x }}").unwrap(),
            "aNoneTrue[1, 2]"
        );
        assert_eq!(render("{% set n = namespace(a=1) %}{% for i in x %}{% set n.a = n.a + i %}{% if i == 2 %}{% break %}{% endif %}{% endfor %}{{ n.a }}").unwrap(), "4");
        assert_eq!(render("{{ 'a-b'.split('-')[::-1] | join(',') }}{{ undefined_thing }}{{ {'a': 1}.get('b', 2) }}").unwrap(), "b,a2");
        assert_eq!(
            render("a\n{% if true %}\n  b\n{% endif %}\nc\n").unwrap(),
            "a\n  b\nc"
        );
    }
}
