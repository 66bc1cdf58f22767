//! Scheduling configs, objectives and model rewrites in Quorate's own form.

use quorate_proto::v1::{
    ModelMatch, ModelRewriteRule, ModelRewriteSpec, ModelRewriteTarget, ObjectiveSpec,
    SchedulingConfigSpec,
};

use super::{
    Fields, Tree,
    node::{Node, Value},
};

/// The config is text that is kept to the letter, or the object itself.
pub(super) fn read_config(fields: &mut Fields<'_, '_>) -> SchedulingConfigSpec {
    let pool = fields.required_text("pool").unwrap_or_default();
    let config = match fields.take("config") {
        Some(Node {
            value: Value::Text(text),
            ..
        }) => text.clone(),
        Some(
            node @ Node {
                value: Value::Map(_),
                ..
            },
        ) => {
            let path = fields.path_of("config");
            fields.findings.keep_lines(node, &path);
            node.to_tree().to_json()
        }
        Some(node) => {
            let message = format!("must be an object or its text, not {}", node.value.is_a());
            fields.problem(node.line, "config", message);
            String::new()
        }
        None => {
            fields.missing("config");
            String::new()
        }
    };
    SchedulingConfigSpec { pool, config }
}

pub(super) fn read_objective(fields: &mut Fields<'_, '_>) -> ObjectiveSpec {
    ObjectiveSpec {
        pool: fields.text("pool").unwrap_or_default(),
        priority: fields.signed("priority").unwrap_or_default(),
    }
}

pub(super) fn read_rewrite(fields: &mut Fields<'_, '_>) -> ModelRewriteSpec {
    ModelRewriteSpec {
        pool: fields.text("pool").unwrap_or_default(),
        rules: fields.sections("rules", |rule| ModelRewriteRule {
            matches: rule.sections("matches", |one| ModelMatch {
                model: one.required_text("model").unwrap_or_default(),
            }),
            targets: rule.sections("targets", |target| ModelRewriteTarget {
                model: target.required_text("model").unwrap_or_default(),
                weight: target.count("weight"),
            }),
        }),
        sticky: fields.flag("sticky").unwrap_or_default(),
    }
}

pub(super) fn config_tree(spec: &SchedulingConfigSpec) -> Tree {
    let mut tree = Tree::map();
    tree.put("pool", spec.pool.as_str());
    tree.put("config", spec.config.as_str());
    tree
}

pub(super) fn objective_tree(spec: &ObjectiveSpec) -> Tree {
    let mut tree = Tree::map();
    tree.put_some("pool", spec.pool.as_str());
    tree.put("priority", Tree::Int(spec.priority.into()));
    tree
}

pub(super) fn rewrite_tree(spec: &ModelRewriteSpec) -> Tree {
    let mut tree = Tree::map();
    tree.put_some("pool", spec.pool.as_str());
    let rules = spec.rules.iter().map(|rule| {
        let mut tree = Tree::map();
        let matches = rule.matches.iter().map(|one| {
            let mut tree = Tree::map();
            tree.put("model", one.model.as_str());
            tree
        });
        tree.put_some("matches", matches.collect::<Tree>());
        let targets = rule.targets.iter().map(|target| {
            let mut tree = Tree::map();
            tree.put("model", target.model.as_str());
            tree.put_some("weight", target.weight);
            tree
        });
        tree.put("targets", targets.collect::<Tree>());
        tree
    });
    tree.put("rules", rules.collect::<Tree>());
    tree.put_some("sticky", spec.sticky.then_some(true));
    tree
}
