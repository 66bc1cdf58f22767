//! Plans an output that is tool calls: the tokens of each name and its arguments, one call after the other.

use super::ToolCall;
use crate::engine::FinishReason;
use crate::text::{Plan, spell};
use crate::tokenizer::{self, EOS};

/// A call and where it is among the tokens of its output.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedCall {
    /// Its id.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its first token; the name is spelled from here.
    pub first: u32,
    /// The first token of its arguments.
    pub arguments: u32,
    /// The token after its last one.
    pub end: u32,
    /// Its arguments, whole.
    pub spelled: String,
}

/// Plans an output of calls, cut off after `limit` tokens. Stop strings and minimum lengths do not touch it: they are about
/// text.
pub fn plan(calls: Vec<ToolCall>, limit: u32) -> Plan {
    let mut tokens = Vec::new();
    let mut planned = Vec::with_capacity(calls.len());
    for call in calls {
        let first = tokens.len() as u32;
        tokenizer::encode(&call.name, &mut tokens);
        let arguments = tokens.len() as u32;
        tokenizer::encode(&call.arguments, &mut tokens);
        planned.push(PlannedCall {
            id: call.id,
            name: call.name,
            first,
            arguments,
            end: tokens.len() as u32,
            spelled: call.arguments,
        });
    }
    let limit = limit.max(1) as usize;
    let finish = if tokens.len() < limit {
        tokens.push(EOS);
        FinishReason::Stop
    } else {
        tokens.truncate(limit);
        FinishReason::Length
    };
    let (text, ends) = spell(&tokens);
    Plan {
        tokens: tokens.into(),
        text,
        ends,
        finish,
        stop_reason: None,
        calls: planned,
        pieces: false,
    }
}

impl Plan {
    /// The call that a token belongs to, and its number.
    pub fn call_of(&self, token: u32) -> Option<(usize, &PlannedCall)> {
        let mut calls = self.calls.iter().enumerate();
        calls.find(|(_, call)| (call.first..call.end).contains(&token))
    }

    /// The arguments of a call as far as `emitted` tokens spell them; `None` while its name is not complete.
    pub fn arguments(&self, call: &PlannedCall, emitted: u32) -> Option<&str> {
        if emitted < call.arguments {
            return None;
        }
        let before = self.prefix(call.arguments).len();
        self.prefix(emitted.min(call.end)).get(before..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_spell_names_and_arguments() {
        let call = |name: &str, arguments: &str| ToolCall {
            id: format!("id-{name}"),
            name: name.into(),
            arguments: arguments.into(),
        };
        let calls = vec![
            call("get_weather", r#"{"city":"Köln","days":3}"#),
            call("now", "{}"),
        ];
        let whole = plan(calls.clone(), 1000);
        assert_eq!(whole.finish, FinishReason::Stop);
        assert_eq!(whole.tokens.last(), Some(&EOS));
        let all = whole.tokens.len() as u32;
        for (planned, call) in whole.calls.iter().zip(&calls) {
            assert_eq!(whole.arguments(planned, all), Some(call.arguments.as_str()));
            let pieces: String = (planned.arguments..planned.end)
                .map(|token| whole.piece(token))
                .collect();
            assert_eq!(pieces, call.arguments);
            assert_eq!(whole.arguments(planned, planned.first), None);
        }
        for limit in 1..all {
            let cut = plan(calls.clone(), limit);
            assert_eq!(
                (cut.tokens.len() as u32, cut.finish),
                (limit, FinishReason::Length)
            );
            let arguments = cut.arguments(&cut.calls[0], limit).unwrap_or_default();
            assert!(calls[0].arguments.starts_with(arguments));
        }
    }
}
