//! Which API a request speaks, told by its path alone.

/// The API of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Api {
    /// OpenAI `chat/completions`.
    Chat,
    /// OpenAI `completions`.
    Completions,
    /// `chat/completions/render`: the prompt as tokens, nothing generated (vLLM).
    ChatRender,
    /// `completions/render`.
    CompletionsRender,
    /// OpenAI `responses`.
    Responses,
    /// OpenAI `conversations`.
    Conversations,
    /// OpenAI `embeddings`.
    Embeddings,
    /// OpenAI `images/generations`.
    Images,
    /// Anthropic `v1/messages`.
    Messages,
    /// Anthropic `v1/messages/count_tokens`.
    CountTokens,
    /// vLLM `inference/v1/generate`: token ids in, token ids out.
    VllmGenerate,
    /// SGLang `/generate`.
    SglangGenerate,
    /// gRPC `vllm.grpc.engine.VllmEngine/Generate`.
    VllmGrpcGenerate,
    /// gRPC `vllm.grpc.engine.VllmEngine/Embed`.
    VllmGrpcEmbed,
    /// Anything else: passed through to an engine as it is.
    #[default]
    Native,
}

/// How errors are said to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `{"error": {message, type, param, code}}`.
    OpenAi,
    /// `{"type": "error", "error": {type, message}}`.
    Anthropic,
    /// `grpc-status` and `grpc-message`.
    Grpc,
}

impl Api {
    /// The API of a POST to `path`. OpenAI's paths may have anything before them (`/v1`, a deployment's name); the longest
    /// known ending counts.
    pub fn of(path: &str) -> Self {
        // From the last segment to the first: most paths are told apart by one comparison.
        let mut segments = path.rsplit('/');
        let mut next = || segments.next().unwrap_or_default();
        match next() {
            "completions" => match next() {
                "chat" => Self::Chat,
                _ => Self::Completions,
            },
            "messages" if next() == "v1" => Self::Messages,
            "responses" => Self::Responses,
            "embeddings" => Self::Embeddings,
            "count_tokens" if next() == "messages" && next() == "v1" => Self::CountTokens,
            "render" if next() == "completions" => match next() {
                "chat" => Self::ChatRender,
                _ => Self::CompletionsRender,
            },
            "conversations" => Self::Conversations,
            "generations" if next() == "images" => Self::Images,
            "generate" if path == "/generate" => Self::SglangGenerate,
            "generate" if next() == "v1" && next() == "inference" => Self::VllmGenerate,
            "Generate" if next() == "vllm.grpc.engine.VllmEngine" => Self::VllmGrpcGenerate,
            "Embed" if next() == "vllm.grpc.engine.VllmEngine" => Self::VllmGrpcEmbed,
            _ => Self::Native,
        }
    }

    /// A short name for metric labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::ChatRender => "chat-render",
            Self::CompletionsRender => "completions-render",
            Self::Responses => "responses",
            Self::Conversations => "conversations",
            Self::Embeddings => "embeddings",
            Self::Images => "images",
            Self::Messages => "messages",
            Self::CountTokens => "count-tokens",
            Self::VllmGenerate => "vllm-generate",
            Self::SglangGenerate => "sglang-generate",
            Self::VllmGrpcGenerate => "vllm-grpc-generate",
            Self::VllmGrpcEmbed => "vllm-grpc-embed",
            Self::Native => "native",
        }
    }

    /// Its requests are refused without a model. The others have no such field, or one that engines do not ask for.
    pub fn needs_model(self) -> bool {
        matches!(
            self,
            Self::Chat
                | Self::Completions
                | Self::ChatRender
                | Self::CompletionsRender
                | Self::Responses
                | Self::Embeddings
                | Self::Images
                | Self::Messages
                | Self::CountTokens
        )
    }

    /// The model in its body may be replaced.
    pub fn is_rewritable(self) -> bool {
        self.needs_model() || matches!(self, Self::Conversations | Self::VllmGenerate)
    }

    /// Body and errors are gRPC's.
    pub fn is_grpc(self) -> bool {
        matches!(self, Self::VllmGrpcGenerate | Self::VllmGrpcEmbed)
    }

    /// A stream of it says the usage only if `stream_options.include_usage` asks for it.
    pub fn asks_for_usage(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }

    /// How its clients understand errors.
    pub fn dialect(self) -> Dialect {
        match self {
            Self::Messages | Self::CountTokens => Dialect::Anthropic,
            Self::VllmGrpcGenerate | Self::VllmGrpcEmbed => Dialect::Grpc,
            _ => Dialect::OpenAi,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_tells() {
        for (path, api) in [
            ("/v1/chat/completions", Api::Chat),
            ("/openai/deployments/x/chat/completions", Api::Chat),
            ("/v1/completions", Api::Completions),
            ("/v1/chat/completions/render", Api::ChatRender),
            ("/v1/completions/render", Api::CompletionsRender),
            ("/v1/responses", Api::Responses),
            ("/v1/conversations", Api::Conversations),
            ("/v1/embeddings", Api::Embeddings),
            ("/v1/images/generations", Api::Images),
            ("/v1/messages", Api::Messages),
            ("/v1/messages/count_tokens", Api::CountTokens),
            ("/inference/v1/generate", Api::VllmGenerate),
            ("/generate", Api::SglangGenerate),
            (
                "/vllm.grpc.engine.VllmEngine/Generate",
                Api::VllmGrpcGenerate,
            ),
            ("/vllm.grpc.engine.VllmEngine/Embed", Api::VllmGrpcEmbed),
            ("/vllm.grpc.engine.VllmEngine/HealthCheck", Api::Native),
            ("/v1/generate", Api::Native),
            ("/v1/threads/t1/messages", Api::Native),
            ("/v1/messages/batches", Api::Native),
            ("/v1/responses/r1/cancel", Api::Native),
            ("/v1/rerank", Api::Native),
            ("/v1/audio/generations", Api::Native),
            ("/", Api::Native),
            ("", Api::Native),
            ("completions", Api::Completions),
            ("/v1/xcompletions", Api::Native),
        ] {
            assert_eq!(Api::of(path), api, "{path}");
        }
    }
}
