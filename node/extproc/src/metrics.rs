//! `llm_d_epp_extproc_*`: the streams themselves. What is measured of requests has the gateway's names, because it is the same.

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use std::time::Instant;
use tonic::Code;

const IN_FLIGHT: &str = "llm_d_epp_extproc_streams_inflight";
const DURATION: &str = "llm_d_epp_extproc_stream_duration_seconds";
const TOTAL: &str = "llm_d_epp_extproc_streams_total";

/// Bucket bounds, for the exporter: streams last as long as requests.
pub const BUCKETS: &[(&str, &[f64])] = &[(
    DURATION,
    &[
        0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
        1800.0, 3600.0,
    ],
)];

/// Gives the recorder units and help texts. Call once, after the recorder is installed and before the server starts.
pub fn describe() {
    describe_gauge!(IN_FLIGHT, "External-processing streams under way.");
    describe_histogram!(
        DURATION,
        Unit::Seconds,
        "From the opening of an external-processing stream to its end."
    );
    describe_counter!(
        TOTAL,
        "External-processing streams that ended, by gRPC code."
    );
}

/// Handles, made once for each worker.
pub(crate) struct Metrics {
    in_flight: Gauge,
    duration: Histogram,
    ok: Counter,
    cancelled: Counter,
}

impl Metrics {
    pub fn new() -> Self {
        Self {
            in_flight: gauge!(IN_FLIGHT),
            duration: histogram!(DURATION),
            ok: counter!(TOTAL, "code" => "OK"),
            cancelled: counter!(TOTAL, "code" => "Canceled"),
        }
    }

    /// A stream was opened.
    pub fn opened(&self) -> Instant {
        self.in_flight.increment(1.0);
        Instant::now()
    }

    /// The stream that was opened then has ended.
    pub fn ended(&self, opened: Instant, code: Code) {
        self.in_flight.decrement(1.0);
        self.duration.record(opened.elapsed());
        match code {
            Code::Ok => self.ok.increment(1),
            Code::Cancelled => self.cancelled.increment(1),
            code => counter!(TOTAL, "code" => name(code)).increment(1),
        }
    }
}

/// The code's name as gRPC libraries for Go write it.
fn name(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "InvalidArgument",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::ResourceExhausted | Code::OutOfRange => "ResourceExhausted",
        Code::Unavailable => "Unavailable",
        Code::Internal => "Internal",
        _ => "Unknown",
    }
}
