//! Filters: which candidates a profile keeps.

pub mod endpoint_attribute;
pub mod label;
pub mod prefix_affinity;
pub mod role;
pub mod saturation;
pub mod session;
pub mod slo_headroom;
pub mod test_header;
pub mod topology_affinity;
pub mod utilization;

use crate::pipeline::Row;

/// Keeps what passes; if nothing does and `or_all` is set, keeps everything.
pub(crate) fn keep(rows: &mut Vec<Row>, or_all: bool, passes: impl Fn(Row) -> bool) {
    if or_all && !rows.iter().any(|row| passes(*row)) {
        return;
    }
    rows.retain(|row| passes(*row));
}
