//! Whether a template wants the content of a message as a string or as a list of parts.
//!
//! The rule is the one that vLLM has: a template that loops over the content of a message wants a list. It is found from the syntax
//! tree, without regard to scopes: variables that come from `messages` by assignment, loops over those, loops over `content` of
//! what these give.

use minijinja::machinery::ast::{Expr, Stmt};
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;

/// The form of the content of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContentFormat {
    /// Text, parts joined by line breaks.
    #[default]
    String,
    /// A list of `{"type": ..., ...}`.
    OpenAi,
}

/// What `source` wants; a string where that cannot be told.
pub(super) fn format(source: &str, syntax: SyntaxConfig) -> ContentFormat {
    let Ok(root) = parse(source, "chat", syntax) else {
        return ContentFormat::String;
    };
    let mut found = Found::default();
    walk(&root, &mut found);
    let mut lists = vec!["messages"];
    // Each name is looked at once, in the order in which it was found.
    let mut at = 0;
    while let Some(list) = lists.get(at).copied() {
        for (name, value) in &found.assigned {
            if refers(value, list, None) && !lists.contains(name) {
                lists.push(name);
            }
        }
        at += 1;
    }
    let items: Vec<&str> = found
        .loops
        .iter()
        .filter(|(_, iter)| lists.iter().any(|list| refers(iter, list, None)))
        .filter_map(|(target, _)| *target)
        .collect();
    let walks = |iter| items.iter().any(|item| refers(iter, item, Some("content")));
    match found.loops.iter().any(|(_, iter)| walks(iter)) {
        true => ContentFormat::OpenAi,
        false => ContentFormat::String,
    }
}

#[derive(Default)]
struct Found<'t, 's> {
    assigned: Vec<(&'s str, &'t Expr<'s>)>,
    /// The loop's variable if it is one name, and what it goes over.
    loops: Vec<(Option<&'s str>, &'t Expr<'s>)>,
}

fn name<'s>(expr: &Expr<'s>) -> Option<&'s str> {
    match expr {
        Expr::Var(var) => Some(var.id),
        _ => None,
    }
}

fn walk<'t, 's>(stmt: &'t Stmt<'s>, found: &mut Found<'t, 's>) {
    let mut all = |body: &'t [Stmt<'s>]| body.iter().for_each(|stmt| walk(stmt, found));
    match stmt {
        Stmt::Template(s) => all(&s.children),
        Stmt::ForLoop(s) => {
            all(&s.body);
            all(&s.else_body);
            found.loops.push((name(&s.target), &s.iter));
        }
        Stmt::IfCond(s) => {
            all(&s.true_body);
            all(&s.false_body);
        }
        Stmt::WithBlock(s) => all(&s.body),
        Stmt::Set(s) => found
            .assigned
            .extend(name(&s.target).map(|name| (name, &s.expr))),
        Stmt::SetBlock(s) => all(&s.body),
        Stmt::AutoEscape(s) => all(&s.body),
        Stmt::FilterBlock(s) => all(&s.body),
        Stmt::Macro(s) => all(&s.body),
        Stmt::CallBlock(s) => all(&s.macro_decl.body),
        _ => {}
    }
}

/// `expr` is the variable (or its member `key`), filtered, tested or cut as it may be.
fn refers(expr: &Expr<'_>, variable: &str, key: Option<&str>) -> bool {
    match (expr, key) {
        (Expr::Filter(f), _) => f.expr.as_ref().is_some_and(|e| refers(e, variable, key)),
        (Expr::Test(t), _) => refers(&t.expr, variable, key),
        (Expr::Slice(s), _) => refers(&s.expr, variable, key),
        (expr, None) => name(expr) == Some(variable),
        (Expr::GetAttr(g), Some(key)) => name(&g.expr) == Some(variable) && g.name == key,
        (Expr::GetItem(g), Some(key)) => {
            let constant = match &g.subscript_expr {
                Expr::Const(c) => c.value.as_str() == Some(key),
                _ => false,
            };
            name(&g.expr) == Some(variable) && constant
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_over_contents_are_found() {
        for (source, format) in [
            (
                "{% for m in messages %}{{ m.content }}{% endfor %}",
                ContentFormat::String,
            ),
            (
                "{% for m in messages %}{% for c in m['content'] %}{% endfor %}{% endfor %}",
                ContentFormat::OpenAi,
            ),
            (
                "{% for m in messages %}{% if m.x %}{% for c in m.content | list %}{% endfor %}{% endif %}{% endfor %}",
                ContentFormat::OpenAi,
            ),
            (
                "{% set l = messages[1:] %}{% set k = l %}{% for m in k %}{% for c in m.content %}{% endfor %}{% endfor %}",
                ContentFormat::OpenAi,
            ),
            (
                "{% for m in other %}{% for c in m.content %}{% endfor %}{% endfor %}",
                ContentFormat::String,
            ),
            (
                "{% for m in messages %}{% for c in m.tool_calls %}{% endfor %}{% endfor %}",
                ContentFormat::String,
            ),
            ("{% if %}", ContentFormat::String),
        ] {
            assert_eq!(
                super::format(source, SyntaxConfig::default()),
                format,
                "{source}"
            );
        }
    }
}
