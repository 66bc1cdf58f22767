//! Watching across broken connections.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use clap::{CommandFactory as _, Parser as _};
use quorate_cli::Io;
use quorate_proto::v1::Kind;

use crate::{Cli, fake::Fake, region};

/// A stream that the test can read while a command writes it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Shared {
    async fn wait_for_lines(&self, count: usize) -> Vec<String> {
        for _ in 0..1500 {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            if text.lines().count() >= count {
                return text.lines().map(str::to_owned).collect();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "not {count} lines: {}",
            String::from_utf8_lossy(&self.0.lock().unwrap())
        );
    }
}

#[tokio::test]
async fn a_watch_goes_on_where_it_stopped() {
    let server = Fake::default().start().await;
    server.state().put(region("a"));
    let address = server.address.to_string();
    let (mut out, mut err) = (Shared::default(), Shared::default());
    let (seen, told) = (out.clone(), err.clone());
    let watch = async move {
        let cli = Cli::parse_from([
            "quorate", "watch", "regions", "-o", "json", "--server", &address,
        ]);
        let mut io = Io {
            out: &mut out,
            err: &mut err,
            input: &mut std::io::empty(),
        };
        quorate_cli::run_with(cli.command, Cli::command, &mut io).await
    };
    let script = async {
        seen.wait_for_lines(1).await;
        server.state().put(region("b"));
        seen.wait_for_lines(2).await;
        // The connection ends; the next one misses nothing and repeats nothing.
        server.state().watchers.clear();
        server.state().put(region("c"));
        seen.wait_for_lines(3).await;
        assert_eq!(server.state().resumed, ["", "2"]);
        // The history is gone: what is there now is compared with what was shown.
        {
            let mut state = server.state();
            state.floor = 100;
            state.watchers.clear();
            state
                .resources
                .remove(&(Kind::Region.into(), "a".to_owned()));
            state.put(region("b"));
        }
        seen.wait_for_lines(5).await
    };
    let lines = tokio::select! {
        exit = watch => panic!("the watch ended: {exit:?} {}", String::from_utf8_lossy(&told.0.lock().unwrap())),
        lines = script => lines,
    };
    let brief: Vec<String> = lines
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|event| {
            format!(
                "{} {}",
                event["event"].as_str().unwrap(),
                event["name"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        brief,
        [
            "PRESENT a",
            "CHANGED b",
            "CHANGED c",
            "CHANGED b",
            "DELETED a"
        ]
    );
}
