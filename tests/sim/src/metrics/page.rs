//! Writes a page in Prometheus' text format, in the manner of its Python client: labels sorted, floats with a point,
//! a `_created` gauge beside every counter and histogram.

use super::Histogram;
use std::fmt::Write;

pub(super) struct Page {
    out: String,
    /// Labels of every series, sorted by name, values escaped.
    labels: Vec<(&'static str, String)>,
    created: Option<f64>,
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

impl Page {
    /// `created` is the start of the server; without it no `_created` series are written.
    pub fn new(labels: &[(&'static str, &str)], created: Option<f64>) -> Self {
        let mut labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| (*name, escape(value)))
            .collect();
        labels.sort_unstable();
        Page {
            out: String::with_capacity(16 * 1024),
            labels,
            created,
        }
    }

    pub fn finish(self) -> String {
        self.out
    }

    pub fn header(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One series. Label values in `extra` are escaped here.
    pub fn sample(&mut self, name: &str, extra: &[(&str, &str)], value: f64) {
        let Page { out, labels, .. } = self;
        out.push_str(name);
        let mut separator = '{';
        let mut rest = labels.iter().peekable();
        let mut put = |out: &mut String, name: &str, value: &str| {
            out.push(separator);
            separator = ',';
            let _ = write!(out, "{name}=\"{value}\"");
        };
        for (name, value) in extra {
            while let Some((common, value)) = rest.next_if(|(common, _)| common < name) {
                put(out, common, value);
            }
            put(out, name, &escape(value));
        }
        for (common, value) in rest {
            put(out, common, value);
        }
        let _ = writeln!(out, "}} {value:?}");
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.header(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// `name` ends in `_total`.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.header(name, "counter", help);
        self.sample(name, &[], value as f64);
        self.created(name.strip_suffix("_total").unwrap_or(name), help);
    }

    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.header(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        let mut bound = String::new();
        for (at, count) in histogram.counts.iter().enumerate() {
            below += count;
            bound.clear();
            match histogram.bounds.get(at) {
                Some(value) => {
                    let _ = write!(bound, "{value:?}");
                }
                None => bound.push_str("+Inf"),
            }
            self.sample(&bucket, &[("le", &bound)], below as f64);
        }
        self.sample(&format!("{name}_count"), &[], below as f64);
        self.sample(&format!("{name}_sum"), &[], histogram.sum);
        self.created(name, help);
    }

    fn created(&mut self, base: &str, help: &str) {
        if let Some(created) = self.created {
            self.gauge(&format!("{base}_created"), help, created);
        }
    }
}
