//! One endpoint under its owner's eyes: what is alive, what is loaded, what it serves.

pub mod actor;
pub mod health;
pub mod io;
pub mod stall;
