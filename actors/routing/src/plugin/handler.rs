//! Profile handlers: which profiles run for a request.

pub mod data_parallel;
pub mod disagg;
pub mod header_profile;
pub mod single;
