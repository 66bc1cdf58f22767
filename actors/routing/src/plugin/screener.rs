//! Screeners: hard constraints that hold for every profile.

pub mod subset;
