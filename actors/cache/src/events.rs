//! KV-cache events of all engines in one model.
