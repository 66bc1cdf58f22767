//! How tool calls are drawn: the options of llm-d-inference-sim, under the same names and with the same defaults.

/// Bounds and probabilities of generated tool calls. A schema's own bounds come before these.
#[derive(Clone, Debug, PartialEq, clap::Args)]
pub struct ToolCallConfig {
    /// Tool calls: largest integer where the schema sets no maximum.
    #[arg(long = "max-tool-call-integer-param", value_name = "N", allow_negative_numbers = true, default_value_t = DEFAULTS.max_integer)]
    pub max_integer: i64,

    /// Tool calls: smallest integer where the schema sets no minimum.
    #[arg(long = "min-tool-call-integer-param", value_name = "N", allow_negative_numbers = true, default_value_t = DEFAULTS.min_integer)]
    pub min_integer: i64,

    /// Tool calls: largest number where the schema sets no maximum.
    #[arg(long = "max-tool-call-number-param", value_name = "X", allow_negative_numbers = true, default_value_t = DEFAULTS.max_number)]
    pub max_number: f64,

    /// Tool calls: smallest number where the schema sets no minimum.
    #[arg(long = "min-tool-call-number-param", value_name = "X", allow_negative_numbers = true, default_value_t = DEFAULTS.min_number)]
    pub min_number: f64,

    /// Tool calls: longest array where the schema sets no maxItems.
    #[arg(long = "max-tool-call-array-param-length", value_name = "N", default_value_t = DEFAULTS.max_array)]
    pub max_array: u32,

    /// Tool calls: shortest array where the schema sets no minItems.
    #[arg(long = "min-tool-call-array-param-length", value_name = "N", default_value_t = DEFAULTS.min_array)]
    pub min_array: u32,

    /// Tool calls: per cent of the parameters that are not required and yet given.
    #[arg(long = "tool-call-not-required-param-probability", value_name = "PERCENT", default_value_t = DEFAULTS.optional_parameter,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub optional_parameter: u8,

    /// Tool calls: per cent of the fields of nested objects that are not required and yet given.
    #[arg(long = "object-tool-call-not-required-field-probability", value_name = "PERCENT", default_value_t = DEFAULTS.optional_field,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub optional_field: u8,

    /// Tool calls: per cent chance of one call more than the request demands (none with tool_choice auto, one with
    /// required), drawn again after each, up to as many calls as there are tools.
    #[arg(long = "tool-call-extra-call-probability", value_name = "PERCENT", default_value_t = DEFAULTS.extra_call,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub extra_call: u8,

    /// Take the parameter schemas of tools unchecked, and make the best of wrong ones.
    #[arg(long)]
    pub skip_tool_validation: bool,
}

const DEFAULTS: ToolCallConfig = ToolCallConfig {
    max_integer: 100,
    min_integer: 0,
    max_number: 100.0,
    min_number: 0.0,
    max_array: 5,
    min_array: 1,
    optional_parameter: 50,
    optional_field: 50,
    extra_call: 45,
    skip_tool_validation: false,
};

impl Default for ToolCallConfig {
    fn default() -> Self {
        DEFAULTS
    }
}

impl ToolCallConfig {
    /// Refuses bounds the wrong way round.
    pub fn validate(&self) -> Result<(), String> {
        let wrong = |what: &str| {
            Err(format!(
                "min-tool-call-{what} is above max-tool-call-{what}, or one of them is not a number"
            ))
        };
        if self.min_integer > self.max_integer {
            return wrong("integer-param");
        }
        let numbers = self.min_number.is_finite() && self.max_number.is_finite();
        if !numbers || self.min_number > self.max_number {
            return wrong("number-param");
        }
        if self.min_array > self.max_array {
            return wrong("array-param-length");
        }
        Ok(())
    }
}
