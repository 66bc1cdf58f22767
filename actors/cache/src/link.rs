//! The connection to an engine's event stream.
