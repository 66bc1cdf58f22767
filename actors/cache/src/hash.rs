//! Block hashes as the engines compute them.
