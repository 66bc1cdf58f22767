//! Tool calls of a chat: which tools a request offers, which ones the answer calls, with which arguments.

mod generate;
mod options;
mod plan;
mod schema;

pub use options::ToolCallConfig;
pub use plan::{PlannedCall, plan};

use generate::Generator;
use serde_json::{Value, json};

/// Tools that one request may offer at most.
const MAX_TOOLS: usize = 1024;

/// A tool that the request offers.
#[derive(Clone, Debug, PartialEq)]
struct Tool {
    name: String,
    parameters: Value,
}

/// What the request wants called.
#[derive(Clone, Debug, PartialEq)]
enum Choice {
    Auto,
    Required,
    Named(usize),
}

/// Tools that the answer may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    tools: Vec<Tool>,
    choice: Choice,
    parallel: bool,
}

/// A call that the answer makes.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Its id, unique in the answer.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments, a JSON object.
    pub arguments: String,
}

/// What is wrong with the tools of a request.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ToolError {
    /// The field at fault.
    pub param: &'static str,
    /// For a person.
    pub message: String,
}

fn wrong<T>(param: &'static str, message: impl Into<String>) -> Result<T, ToolError> {
    Err(ToolError {
        param,
        message: message.into(),
    })
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`. `None` when the answer may not call any.
    pub fn parse(
        tools: Option<&Value>,
        choice: Option<&Value>,
        parallel: bool,
        config: &ToolCallConfig,
    ) -> Result<Option<Tools>, ToolError> {
        let tools = match tools {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(tools)) if tools.len() > MAX_TOOLS => {
                return wrong(
                    "tools",
                    format!("a request may offer {MAX_TOOLS} tools at most"),
                );
            }
            Some(Value::Array(tools)) => tools
                .iter()
                .enumerate()
                .map(|(at, tool)| parse_tool(at, tool, config))
                .collect::<Result<_, _>>()?,
            Some(_) => return wrong("tools", "`tools` must be an array."),
        };
        let choice = choice.filter(|choice| !choice.is_null());
        if choice.is_some_and(|choice| choice == "none") {
            return Ok(None);
        }
        if tools.is_empty() {
            return match choice {
                None => Ok(None),
                Some(_) => wrong(
                    "tool_choice",
                    "When using `tool_choice`, `tools` must be set.",
                ),
            };
        }
        let choice = match choice {
            None => Choice::Auto,
            Some(choice) => parse_choice(choice, &tools)?,
        };
        Ok(Some(Tools {
            tools,
            choice,
            parallel,
        }))
    }

    /// Whether the request insists on a call.
    pub fn demanded(&self) -> bool {
        self.choice != Choice::Auto
    }

    /// Draws the calls of one answer; none at all when the request leaves the choice to the model and it chooses text.
    pub fn draw(
        &self,
        config: &ToolCallConfig,
        rng: &mut fastrand::Rng,
    ) -> Result<Vec<ToolCall>, ToolError> {
        let mut calls = Vec::new();
        if let Choice::Named(at) = self.choice {
            if let Some(tool) = self.tools.get(at) {
                calls.push(call(tool, config, rng)?);
            }
            return Ok(calls);
        }
        let mut count = usize::from(self.choice == Choice::Required);
        let most = if self.parallel { self.tools.len() } else { 1 };
        while count < most && rng.u8(0..100) < config.extra_call {
            count += 1;
        }
        for _ in 0..count {
            if let Some(tool) = self.tools.get(rng.usize(0..self.tools.len())) {
                calls.push(call(tool, config, rng)?);
            }
        }
        Ok(calls)
    }
}

fn parse_tool(at: usize, tool: &Value, config: &ToolCallConfig) -> Result<Tool, ToolError> {
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return wrong("tools", format!("`tools[{at}].type` must be \"function\"."));
    }
    let Some(function) = tool.get("function").and_then(Value::as_object) else {
        return wrong(
            "tools",
            format!("`tools[{at}].function` must be an object."),
        );
    };
    let name = function.get("name").and_then(Value::as_str);
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return wrong(
            "tools",
            format!("`tools[{at}].function.name` must be a text that is not empty."),
        );
    };
    let parameters = match function.get("parameters") {
        None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
        Some(parameters) => parameters.clone(),
    };
    if !config.skip_tool_validation
        && let Err(problem) = schema::validate(&parameters)
    {
        return wrong(
            "tools",
            format!("The parameters of tool `{name}` are not a valid schema: {problem}."),
        );
    }
    Ok(Tool {
        name: name.to_owned(),
        parameters,
    })
}

fn parse_choice(choice: &Value, tools: &[Tool]) -> Result<Choice, ToolError> {
    match choice {
        Value::String(text) if text == "auto" => Ok(Choice::Auto),
        Value::String(text) if text == "required" => Ok(Choice::Required),
        Value::Object(object) if object.get("type").and_then(Value::as_str) == Some("function") => {
            let name = choice.pointer("/function/name").and_then(Value::as_str);
            let Some(name) = name else {
                return wrong("tool_choice", "`tool_choice.function.name` is missing.");
            };
            match tools.iter().position(|tool| tool.name == name) {
                Some(at) => Ok(Choice::Named(at)),
                None => wrong(
                    "tool_choice",
                    format!("The tool `{name}` in `tool_choice` is not among `tools`."),
                ),
            }
        }
        _ => wrong(
            "tool_choice",
            "`tool_choice` must be \"none\", \"auto\", \"required\" or \
             {\"type\": \"function\", \"function\": {\"name\": ...}}.",
        ),
    }
}

fn call(
    tool: &Tool,
    config: &ToolCallConfig,
    rng: &mut fastrand::Rng,
) -> Result<ToolCall, ToolError> {
    let id = format!("chatcmpl-tool-{:032x}", rng.u128(..));
    let arguments = Generator::new(config, rng, &tool.parameters)
        .arguments()
        .map_err(|problem| ToolError {
            param: "tools",
            message: format!("No arguments for tool `{}`: {problem}.", tool.name),
        })?;
    Ok(ToolCall {
        id,
        name: tool.name.clone(),
        arguments: arguments.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weather() -> Value {
        json!([
            {"type": "function", "function": {"name": "weather", "parameters": {
                "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}},
            {"type": "function", "function": {"name": "time"}},
        ])
    }

    fn parse(tools: Value, choice: Value) -> Result<Option<Tools>, ToolError> {
        Tools::parse(
            Some(&tools),
            Some(&choice),
            true,
            &ToolCallConfig::default(),
        )
    }

    fn draw(tools: &Tools, seed: u64) -> Vec<ToolCall> {
        let mut rng = fastrand::Rng::with_seed(seed);
        tools.draw(&ToolCallConfig::default(), &mut rng).unwrap()
    }

    #[test]
    fn choice_decides_how_many_calls() {
        assert_eq!(parse(weather(), json!("none")), Ok(None));
        assert_eq!(parse(json!([]), json!(null)), Ok(None));
        let named = json!({"type": "function", "function": {"name": "time"}});
        let named = parse(weather(), named).unwrap().unwrap();
        let required = parse(weather(), json!("required")).unwrap().unwrap();
        let auto = parse(weather(), json!(null)).unwrap().unwrap();
        assert!(named.demanded() && required.demanded() && !auto.demanded());
        let mut counts = [[0; 3]; 2];
        for seed in 0..300 {
            let calls = draw(&named, seed);
            assert_eq!((calls.len(), calls[0].name.as_str()), (1, "time"));
            assert_eq!(calls[0].arguments, "{}");
            counts[0][draw(&required, seed).len()] += 1;
            counts[1][draw(&auto, seed).len()] += 1;
        }
        assert_eq!(counts[0][0], 0, "required means at least one");
        assert!(counts[0][1] > 100 && counts[0][2] > 80, "{counts:?}");
        assert!(
            counts[1][0] > 100 && counts[1][1] > 30 && counts[1][2] > 20,
            "{counts:?}"
        );
        let one = Tools {
            parallel: false,
            ..required
        };
        assert!((0..50).all(|seed| draw(&one, seed).len() == 1));
    }

    #[test]
    fn nonsense_is_refused_and_names_its_field() {
        let tool = |function: Value| json!([{"type": "function", "function": function}]);
        for (tools, choice, param) in [
            (json!({}), json!(null), "tools"),
            (json!([5]), json!(null), "tools"),
            (json!([{"type": "other"}]), json!(null), "tools"),
            (json!([{"type": "function"}]), json!(null), "tools"),
            (tool(json!({"name": ""})), json!(null), "tools"),
            (
                tool(json!({"name": "f", "parameters": {"type": "objekt"}})),
                json!(null),
                "tools",
            ),
            (json!([]), json!("auto"), "tool_choice"),
            (weather(), json!("always"), "tool_choice"),
            (weather(), json!({"type": "function"}), "tool_choice"),
            (
                weather(),
                json!({"type": "function", "function": {"name": "x"}}),
                "tool_choice",
            ),
        ] {
            assert_eq!(
                parse(tools.clone(), choice).unwrap_err().param,
                param,
                "{tools}"
            );
        }
        let skip = ToolCallConfig {
            skip_tool_validation: true,
            ..ToolCallConfig::default()
        };
        let odd = tool(json!({"name": "f", "parameters": {"type": "objekt"}}));
        let tools = Tools::parse(Some(&odd), Some(&json!("required")), true, &skip);
        assert_eq!(draw(&tools.unwrap().unwrap(), 1)[0].arguments, "{}");
    }
}
