//! How Envoy hands over bodies, and which of its ways can be worked with.

use quorate_proto::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use quorate_proto::envoy::service::ext_proc::v3::ProtocolConfiguration;

/// The body modes of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Modes {
    /// Of the request.
    pub request: BodySendMode,
    /// Of the response.
    pub response: BodySendMode,
}

impl Default for Modes {
    /// What the endpoint-picker protocol asks for; holds for an Envoy that is too old to say its modes.
    fn default() -> Self {
        Self {
            request: BodySendMode::FullDuplexStreamed,
            response: BodySendMode::FullDuplexStreamed,
        }
    }
}

impl Modes {
    /// As the first message says.
    ///
    /// # Errors
    /// What to change in Envoy's configuration.
    pub fn read(config: &ProtocolConfiguration) -> Result<Self, &'static str> {
        // Endpoints are picked by the model, which stands in the body: it must be here before the head is answered.
        let request = match config.request_body_mode() {
            BodySendMode::Streamed => {
                return Err("request_body_mode STREAMED cannot be used: set FULL_DUPLEX_STREAMED");
            }
            BodySendMode::Grpc => {
                return Err("request_body_mode GRPC cannot be used: set FULL_DUPLEX_STREAMED");
            }
            mode => mode,
        };
        let response = match config.response_body_mode() {
            BodySendMode::Grpc => {
                return Err("response_body_mode GRPC cannot be used: set FULL_DUPLEX_STREAMED");
            }
            BodySendMode::BufferedPartial => {
                return Err(
                    "response_body_mode BUFFERED_PARTIAL cannot be used: set FULL_DUPLEX_STREAMED",
                );
            }
            mode => mode,
        };
        Ok(Self { request, response })
    }

    /// The whole request body comes in one message, after the head has been answered.
    pub fn request_is_buffered(self) -> bool {
        matches!(
            self.request,
            BodySendMode::Buffered | BodySendMode::BufferedPartial
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(request: BodySendMode, response: BodySendMode) -> Result<Modes, &'static str> {
        Modes::read(&ProtocolConfiguration {
            request_body_mode: request.into(),
            response_body_mode: response.into(),
            send_body_without_waiting_for_header_response: false,
        })
    }

    #[test]
    fn says_what_to_set_instead() {
        use BodySendMode::{Buffered, FullDuplexStreamed, Grpc, None, Streamed};
        assert_eq!(
            read(FullDuplexStreamed, FullDuplexStreamed),
            Ok(Modes::default())
        );
        assert!(read(Buffered, Streamed).unwrap().request_is_buffered());
        assert!(read(None, None).is_ok());
        for (request, response) in [(Streamed, None), (Grpc, None), (None, Grpc)] {
            let said = read(request, response).unwrap_err();
            assert!(said.contains("FULL_DUPLEX_STREAMED"), "{said}");
        }
    }
}
