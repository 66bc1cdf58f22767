//! What the state itself does not check because it takes the code that uses it: whether a scheduling config compiles, as a whole,
//! and what is allowed but hardly meant.

use super::status;
use quorate_cache::route::registry_to_check_with;
use quorate_proto::v1::{Resource, resource::Spec};
use quorate_routing::config::{ConfigErrors, EndpointPickerConfig};
use tonic::Status;

/// Where errors in the text are said to be.
const CONFIG: &str = "spec.scheduling_config.config";

/// Warnings about a resource whose fields were checked.
///
/// # Errors
/// INVALID_ARGUMENT with every error of the text.
pub fn check(resource: &Resource) -> Result<Vec<String>, Status> {
    match &resource.spec {
        Some(Spec::SchedulingConfig(spec)) => {
            let parsed = EndpointPickerConfig::parse(&spec.config).map_err(|e| refuse(&e))?;
            let compiled = parsed
                .config
                .compile_with(&registry_to_check_with())
                .map_err(|e| refuse(&e))?;
            let warnings = parsed.warnings.iter().chain(&compiled.warnings);
            Ok(warnings.map(ToString::to_string).collect())
        }
        Some(Spec::ModelRewrite(spec)) => Ok(spec
            .rules
            .iter()
            .enumerate()
            .filter_map(|(i, rule)| {
                let weighted = rule.targets.iter().filter(|t| t.weight.is_some()).count();
                (weighted != 0 && weighted != rule.targets.len()).then(|| {
                    format!(
                        "rules[{i}].targets: {weighted} of {} have a weight; the others are never chosen",
                        rule.targets.len()
                    )
                })
            })
            .collect()),
        _ => Ok(Vec::new()),
    }
}

fn refuse(errors: &ConfigErrors) -> Status {
    let violations = errors.0.iter().map(|problem| {
        let field = if problem.path.is_empty() {
            CONFIG.to_owned()
        } else {
            format!("{CONFIG}.{}", problem.path)
        };
        (field, problem.message.clone())
    });
    status::all_invalid(violations)
}
