//! Error answers in OpenAI's JSON shape, as vLLM writes them.

use serde_json::json;

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// For a person.
    pub message: String,
    /// `type` of the error object.
    pub kind: &'static str,
    /// Parameter at fault.
    pub param: Option<String>,
}

impl ApiError {
    /// An error whose type follows from its status.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        let kind = match status {
            400 | 413 | 422 => "BadRequestError",
            401 => "AuthenticationError",
            403 => "PermissionDeniedError",
            404 => "NotFoundError",
            429 => "RateLimitError",
            503 => "ServiceUnavailableError",
            _ => "InternalServerError",
        };
        ApiError {
            status,
            message: message.into(),
            kind,
            param: None,
        }
    }

    /// 400.
    pub fn bad(message: impl Into<String>) -> Self {
        ApiError::new(400, message)
    }

    /// 404 for a model that nobody serves.
    pub fn model_not_found(model: &str) -> Self {
        ApiError::new(404, format!("The model `{model}` does not exist.")).param("model")
    }

    /// Names the parameter at fault.
    pub fn param(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    /// The body.
    pub fn body(&self) -> Vec<u8> {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}})
            .to_string()
            .into_bytes()
    }
}
