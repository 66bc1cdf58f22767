//! openraft's own suite for log stores and state machines.
