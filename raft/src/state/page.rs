//! Listing in pages with a continuation token.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use quorate_proto::v1::{Kind, Resource};

use super::{ControlView, put::belongs_to, resource::ResourceExt as _, resource::kind_name};

/// Resources in a page at most.
pub const MAX_PAGE_SIZE: usize = 1000;

/// Which resources of a kind are wanted; the default wants all.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    /// All of these labels must be carried.
    pub labels: BTreeMap<String, String>,
    /// Endpoints only: those of this pool, if not empty.
    pub pool: String,
}

/// Part of a listing.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In name order.
    pub resources: Vec<Arc<Resource>>,
    /// Continues the listing; empty at its end.
    pub next_page_token: String,
}

/// The token was not issued for this listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the page token does not belong to a listing of this kind")]
pub struct BadPageToken;

impl ControlView {
    /// One page of a listing. A `page_size` of 0 or above [`MAX_PAGE_SIZE`] means that maximum. Pages of one listing may
    /// be read from different views: what is there all the time appears exactly once.
    ///
    /// # Errors
    /// [`BadPageToken`] if `page_token` is neither empty nor a token of a listing of this kind.
    pub fn page(
        &self,
        kind: Kind,
        filter: &ListFilter,
        page_token: &str,
        page_size: usize,
    ) -> Result<Page, BadPageToken> {
        let prefix = format!("{}/", kind_name(kind));
        let after = match page_token {
            "" => "",
            token => token
                .strip_prefix(&prefix)
                .filter(|name| !name.is_empty())
                .ok_or(BadPageToken)?,
        };
        let page_size = if page_size == 0 {
            MAX_PAGE_SIZE
        } else {
            page_size.min(MAX_PAGE_SIZE)
        };
        let Some(table) = self.tables.of_kind(kind) else {
            return Ok(Page::default());
        };
        let pool = self.get(Kind::Pool, &filter.pool).map(|r| &**r);
        let mut matching = table
            .range::<_, str>((Bound::Excluded(after), Bound::Unbounded))
            .map(|(_, resource)| resource)
            .filter(|r| filter.labels.is_empty() || r.selected_by(&filter.labels))
            .filter(|r| filter.pool.is_empty() || belongs_to(r, &filter.pool, pool));
        let resources: Vec<_> = matching.by_ref().take(page_size).cloned().collect();
        let next_page_token = match resources.last() {
            Some(last) if matching.next().is_some() => format!("{prefix}{}", last.name()),
            _ => String::new(),
        };
        Ok(Page {
            resources,
            next_page_token,
        })
    }
}
