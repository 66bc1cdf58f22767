//! The resume token: a cluster and a revision, opaque to clients and good on every node of that cluster.

use std::{fmt, str::FromStr};

use super::WatchError;

/// First part of a token; another one if the meaning of the rest ever changes.
const FORMAT: &str = "q1";

/// A place in the history of changes. Its text form is what clients keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeToken {
    cluster_id: String,
    revision: u64,
}

impl ResumeToken {
    pub(crate) fn new(cluster_id: &str, revision: u64) -> Self {
        Self {
            cluster_id: cluster_id.to_owned(),
            revision,
        }
    }

    /// The cluster whose history it is.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// The last change before the place.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

impl fmt::Display for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{FORMAT}.{:x}.{}", self.revision, self.cluster_id)
    }
}

impl FromStr for ResumeToken {
    type Err = WatchError;

    fn from_str(text: &str) -> Result<Self, WatchError> {
        let mut parts = text.splitn(3, '.');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(FORMAT), Some(revision), Some(cluster_id)) => {
                let token = Self {
                    revision: u64::from_str_radix(revision, 16)
                        .map_err(|_| WatchError::BadToken)?,
                    cluster_id: cluster_id.to_owned(),
                };
                // One place has one text: "+1" or "01" for 1 was not issued by us.
                if token.to_string() == text {
                    Ok(token)
                } else {
                    Err(WatchError::BadToken)
                }
            }
            _ => Err(WatchError::BadToken),
        }
    }
}
